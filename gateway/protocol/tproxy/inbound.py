"""Captured flows come in here, each with its original destination."""

from __future__ import annotations

import errno
import socket

from gateway.config.shared import networks
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.flow import Flow
from gateway.core.stream import Receiver
from gateway.kernel.sockopt import (
    IP_RECVORIGDSTADDR,
    IPV6_RECVORIGDSTADDR,
    address_of,
    is_local,
    parse_sockaddr,
    set_transparent,
)
from gateway.protocol.tproxy.options import InboundOptions
from gateway.protocol.tproxy.reply import Replies
from gateway.transport.listen import Acceptor, has_ipv6, packet_socket, stream_socket
from gateway.transport.tcp import SocketStream
from gateway.transport.udp import Port, SockAddr

TRIES = 10
"""Ports that are tried where none is given."""
KNOWN = 4096
"""Pairs of source and destination whose spelling is remembered; at the bound all are forgotten and learned anew."""

_LEVELS = {socket.IPPROTO_IP: IP_RECVORIGDSTADDR, socket.IPPROTO_IPV6: IPV6_RECVORIGDSTADDR}


class Inbound:
    """``port`` is where all its sockets listen; chosen at ``start`` where the configuration names none."""

    type = "tproxy"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.port = options.listen_port
        self._options = options
        self._wiring = wiring
        self._networks = networks(options.network)
        self._acceptors: list[Acceptor] = []
        self._ports: list[Port] = []
        self._known: dict[tuple[SockAddr, bytes], tuple[Flow, Receiver] | None] = {}
        self._replies: Replies | None = None

    def _hosts(self) -> list[tuple[int, str]]:
        """One socket a family: IP_TRANSPARENT and IPV6_TRANSPARENT are options of their families."""
        listen = self._options.listen
        if listen not in ("", "::"):
            return [(socket.AF_INET6 if ":" in listen else socket.AF_INET, listen)]
        return [(socket.AF_INET, "0.0.0.0"), *([(socket.AF_INET6, "::")] if has_ipv6() else [])]

    async def start(self) -> None:
        """Raises OSError; PermissionError without CAP_NET_ADMIN."""
        given = self.port
        for left in reversed(range(1 if given else TRIES)):
            self._replies = Replies(self._wiring)
            try:
                self._listen()
                return
            except BaseException as error:
                await self.close()
                self.port = self._options.listen_port = given
                # Somebody has that port for the other network or family.
                if not left or not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                    raise

    def _listen(self) -> None:
        for family, host in self._hosts():
            if "tcp" in self._networks:
                self._listen_stream(family, host)
            if "udp" in self._networks:
                self._listen_packets(family, host)

    def _bound(self, sock: socket.socket) -> None:
        """With ``listen_port`` 0 the first socket chooses the port of all."""
        if not self.port:
            self.port = sock.getsockname()[1]
            self._options.listen_port = self.port

    def _listen_stream(self, family: int, host: str) -> None:
        sock = stream_socket(self._options, self._wiring, family, host, only_v6=True, tune=set_transparent)
        self._bound(sock)
        self._acceptors.append(Acceptor(self._wiring.edge, sock, self._accepted))

    def _listen_packets(self, family: int, host: str) -> None:
        def tune(sock: socket.socket) -> None:
            set_transparent(sock)
            level = socket.IPPROTO_IPV6 if family == socket.AF_INET6 else socket.IPPROTO_IP
            sock.setsockopt(level, _LEVELS[level], 1)

        sock = packet_socket(self._options, self._wiring, family, host, only_v6=True, tune=tune)
        self._bound(sock)
        self._ports.append(Port(self._wiring.edge, sock, self._received))

    def _accepted(self, sock: socket.socket, name: SockAddr) -> None:
        try:
            destination = address_of(sock.getsockname())
        except OSError:
            sock.close()
            return
        if self._is_own(destination):
            sock.close()
            return
        flow = Flow("tcp", self.tag, self.type, address_of(name), destination)
        self._wiring.router.route_stream(flow, SocketStream(self._wiring.edge, sock))

    def _is_own(self, destination: Address) -> bool:
        """Somebody spoke to the listener itself: routing that would lead back here for ever."""
        return destination.port == self.port and destination.ip is not None and is_local(destination.ip)

    def _received(
        self, data: memoryview, name: SockAddr, segment: int, ancillary: list[tuple[int, int, bytes]]
    ) -> None:
        for level, kind, value in ancillary:
            if _LEVELS.get(level) == kind:
                try:
                    found = self._known[name, value]
                except KeyError:
                    found = self._learn(name, value)
                if found is not None:
                    self._wiring.router.route_packet(found[0], data, found[1], segment)
                return

    def _learn(self, name: SockAddr, value: bytes) -> tuple[Flow, Receiver] | None:
        if len(self._known) >= KNOWN:
            self._known.clear()
        known: tuple[Flow, Receiver] | None = None
        try:
            destination = parse_sockaddr(value)
        except ValueError:
            return None
        if not self._is_own(destination) and self._replies is not None:
            flow = Flow("udp", self.tag, self.type, address_of(name), destination)
            known = (flow, self._replies.receiver(name))
        self._known[name, value] = known
        return known

    async def close(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()
        for port in self._ports:
            port.close()
        self._acceptors.clear()
        self._ports.clear()
        if self._replies is not None:
            self._replies.close()
