"""SOCKS and HTTP clients come in here, on one port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.protocol.http.inbound import Handler as HTTPHandler
from gateway.protocol.socks.inbound import Handler as SOCKSHandler
from gateway.transport import inbound
from gateway.transport.tcp import SocketStream


class Handler(inbound.Handler):
    def __init__(self, tag: str, kind: str, users: Mapping[str, str], wiring: Wiring) -> None:
        super().__init__(tag, kind, users, wiring)
        self._socks = SOCKSHandler(tag, kind, users, wiring)
        self._http = HTTPHandler(tag, kind, users, wiring)

    async def greet(self, stream: SocketStream, source: Address) -> None:
        async with asyncio.timeout(inbound.HANDSHAKE):
            data = await stream.read()
        if not data:
            stream.close()
            return
        stream.unread(data)
        await (self._socks if data[0] in (4, 5) else self._http).greet(stream, source)


class Inbound(inbound.Inbound):
    type = "mixed"
    handler = Handler
