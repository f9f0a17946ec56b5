"""Redirected connections come in here."""

from __future__ import annotations

import socket

from gateway.core.contracts import Wiring
from gateway.core.flow import Flow
from gateway.kernel.sockopt import address_of, original_destination
from gateway.protocol.redirect.options import InboundOptions
from gateway.transport.listen import Acceptor, listen_address, stream_socket
from gateway.transport.tcp import SocketStream
from gateway.transport.udp import SockAddr


class Inbound:
    type = "redirect"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.port = options.listen_port
        self._options = options
        self._wiring = wiring
        self._acceptor: Acceptor | None = None

    async def start(self) -> None:
        """Raises OSError."""
        sock = stream_socket(self._options, self._wiring, *listen_address(self._options))
        self.port = sock.getsockname()[1]
        self._acceptor = Acceptor(self._wiring.edge, sock, self._accepted)

    def _accepted(self, sock: socket.socket, name: SockAddr) -> None:
        try:
            destination = original_destination(sock)
            own = destination == address_of(sock.getsockname())
        except (OSError, ValueError):
            own = True
        if own:
            sock.close()  # nobody redirected it: connecting onwards would lead back here for ever
            return
        flow = Flow("tcp", self.tag, self.type, address_of(name), destination)
        self._wiring.router.route_stream(flow, SocketStream(self._wiring.edge, sock))

    async def close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
