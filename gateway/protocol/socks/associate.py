"""One UDP association of a SOCKS 5 client: a socket beside its TCP connection, which ends with that connection."""

from __future__ import annotations

import socket

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Buffer, datagrams
from gateway.kernel.edge import IN
from gateway.kernel.sockopt import address_of, set_mark
from gateway.protocol.socks import codec

BATCH = 64
"""Datagrams read in one wake-up."""


class Association:
    """Datagrams are taken from the client's address alone; its port is the one the first datagram came from."""

    def __init__(self, tag: str, kind: str, user: str, wiring: Wiring, local: Address, client: Address) -> None:
        """Bind beside ``local``. Raises OSError."""
        assert local.ip is not None
        self._tag = tag
        self._type = kind
        self._user = user
        self._wiring = wiring
        self._client = client.host
        self._source: Address | None = None
        self._to: tuple[str, int] = ("", 0)
        family = socket.AF_INET if local.ip.version == 4 else socket.AF_INET6
        self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            set_mark(self._sock, wiring.mark)
            self._sock.bind((str(local.ip), 0))
            self.bound = address_of(self._sock.getsockname())
            wiring.edge.add(self._sock.fileno(), IN, self._readable)
        except OSError:
            self._sock.close()
            raise

    def _readable(self, events: int) -> None:
        for _ in range(BATCH):
            try:
                data, name = self._sock.recvfrom(65535)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP error of an earlier send
            self._received(data, name)

    def _received(self, data: bytes, name: tuple[str, int]) -> None:
        source = address_of(name)
        if source.host != self._client or self._source not in (None, source):
            return
        try:
            destination, payload = codec.unwrap(data)
        except PeerError:
            return
        if self._source is None:
            self._source = source
            self._to = name
        flow = Flow("udp", self._tag, self._type, source, destination, self._user, local=self.bound)
        self._wiring.router.route_packet(flow, payload, self._reply)

    def _reply(self, data: Buffer, peer: Address, segment: int) -> None:
        if self._sock.fileno() < 0:
            return
        header = codec.wrap(peer)
        for datagram in datagrams(data, segment):
            try:
                self._sock.sendmsg([header, datagram], (), 0, self._to)
            except OSError:
                pass  # full buffer or ICMP error: a datagram may be lost

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            self._wiring.edge.remove(self._sock.fileno())
            self._sock.close()
            if self._source is not None:
                self._wiring.router.close_packets(self._tag, self._source)
