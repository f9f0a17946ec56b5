"""Port 53 that nft redirects here: the rules see queries to the address after the device's own, as sing-box's do."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping

from gateway.config.shared import ListenOptions
from gateway.core.address import IP, Address
from gateway.core.contracts import Wiring
from gateway.core.flow import Flow, Network
from gateway.core.stream import Buffer
from gateway.kernel.sockopt import address_of
from gateway.transport.listen import Acceptor, packet_socket, stream_socket
from gateway.transport.tcp import SocketStream
from gateway.transport.udp import Port, Received, SockAddr, transmit

TRIES = 64
"""Ports tried until one is free for TCP and UDP of all families."""
_ANY = {4: (socket.AF_INET, "0.0.0.0"), 6: (socket.AF_INET6, "::")}


class Names:
    """``servers``: family -> destination of its queries. ``port`` is chosen at ``start``."""

    def __init__(self, tag: str, kind: str, wiring: Wiring, servers: Mapping[int, IP]) -> None:
        self.port = 0
        self._tag, self._type = tag, kind
        self._wiring = wiring
        self._servers = {family: Address(ip, 53) for family, ip in servers.items()}
        self._acceptors: list[Acceptor] = []
        self._ports: list[Port] = []

    def start(self) -> None:
        """Raises OSError."""
        for _ in range(TRIES):
            try:
                self._listen()
                return
            except OSError as error:
                self.close()
                if error.errno != errno.EADDRINUSE:
                    raise
        raise OSError(errno.EADDRINUSE, "no port is free for captured DNS")

    def _listen(self) -> None:
        options = ListenOptions()
        for family in self._servers:
            at = _ANY[family]
            sock = packet_socket(options, self._wiring, *at, only_v6=True)
            options.listen_port = self.port = sock.getsockname()[1]
            self._ports.append(Port(self._wiring.edge, sock, self._received(sock, family)))
            stream = stream_socket(options, self._wiring, *at, only_v6=True)
            self._acceptors.append(Acceptor(self._wiring.edge, stream, self._accepted))

    def _flow(self, network: Network, name: SockAddr) -> Flow:
        source = address_of(name)
        assert source.ip is not None
        return Flow(network, self._tag, self._type, source, self._servers[source.ip.version])

    def _accepted(self, sock: socket.socket, name: SockAddr) -> None:
        self._wiring.router.route_stream(self._flow("tcp", name), SocketStream(self._wiring.edge, sock))

    def _received(self, sock: socket.socket, family: int) -> Received:
        def received(data: memoryview, name: SockAddr, segment: int, ancillary: object) -> None:
            def reply(data: Buffer, peer: Address, segment: int) -> None:
                # Conntrack gives it the address that the client asked.
                if peer == self._servers[family]:
                    transmit(sock, data, name, segment)

            self._wiring.router.route_packet(self._flow("udp", name), data, reply, segment)

        return received

    def close(self) -> None:
        """Any number of times."""
        for acceptor in self._acceptors:
            acceptor.close()
        for port in self._ports:
            port.close()
        self._acceptors.clear()
        self._ports.clear()
        self.port = 0
