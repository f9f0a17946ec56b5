"""Flows leave through an HTTP proxy here, by CONNECT."""

from __future__ import annotations

import asyncio

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError, PeerError
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.http import codec
from gateway.protocol.http.options import OutboundOptions
from gateway.transport.handshake import handshake
from gateway.transport.remote import Remote

HANDSHAKE = 15.0
"""Seconds that the proxy may take to connect."""


class Outbound:
    type = "http"
    networks: frozenset[Network] = frozenset(("tcp",))

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self._options = options
        self._headers = {name: [value] if isinstance(value, str) else value for name, value in options.headers.items()}
        self._remote = Remote(options, wiring)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        options = self._options
        stream = await self._remote.connect(flow)
        shake = codec.Connect(destination, options.username, options.password, self._headers, options.path)
        with handshake("http", stream):
            async with asyncio.timeout(HANDSHAKE):
                await stream.write(shake.hello())
                while not shake.receive(data := await stream.read()):
                    if not data:
                        raise PeerError("proxy closed the connection")
        stream.unread(shake.rest)
        return stream

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        raise DialError("http carries no UDP", "connect")

    async def close(self) -> None:
        """Nothing is pooled."""
