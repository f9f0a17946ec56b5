"""SOCKS and HTTP clients come in here, on one port."""

from __future__ import annotations

import asyncio

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.protocol.http.inbound import Handler as HTTPHandler
from gateway.protocol.mixed.options import InboundOptions
from gateway.protocol.socks.inbound import HANDSHAKE, users_of
from gateway.protocol.socks.inbound import Handler as SOCKSHandler
from gateway.transport.listen import StreamListener
from gateway.transport.tcp import SocketStream


class Inbound:
    type = "mixed"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        users = users_of(options.users)
        self._socks = SOCKSHandler(tag, self.type, users, wiring)
        self._http = HTTPHandler(tag, self.type, users, wiring)
        self._listener = StreamListener(options, wiring, self._serve)

    async def _serve(self, stream: SocketStream, source: Address) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE):
                data = await stream.read()
        except (OSError, TimeoutError):
            data = b""
        except asyncio.CancelledError:
            stream.close()
            raise
        if not data:
            stream.close()
            return
        stream.unread(data)
        await (self._socks if data[0] in (4, 5) else self._http).serve(stream, source)

    async def start(self) -> None:
        await self._listener.start()

    async def close(self) -> None:
        await self._listener.close()
