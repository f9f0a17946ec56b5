"""HTTP proxy clients come in here."""

from __future__ import annotations

import asyncio

import h11

from gateway.core.address import Address
from gateway.core.errors import PeerError
from gateway.core.flow import Flow
from gateway.kernel.sockopt import address_of
from gateway.protocol.http import codec
from gateway.protocol.http.plain import Exchange
from gateway.transport import inbound
from gateway.transport.tcp import SocketStream

IDLE = 300.0
"""Seconds that a client may stay silent between two plain requests."""


class Handler(inbound.Handler):
    """``mixed`` uses it too."""

    async def greet(self, stream: SocketStream, source: Address) -> None:
        client = h11.Connection(h11.SERVER, max_incomplete_event_size=codec.LONGEST)
        exchange = Exchange(stream, client, self._flow(stream, source), self._wiring)
        try:
            if not await self._requests(stream, client, source, exchange):
                stream.close()
        except h11.RemoteProtocolError:
            await refuse(stream, codec.BAD_REQUEST)
        finally:
            exchange.close()

    def _flow(self, stream: SocketStream, source: Address) -> Flow:
        """Without a destination."""
        local = address_of(stream.sock.getsockname())
        return Flow("tcp", self._tag, self._type, source, Address("", 0), local=local)

    async def _requests(
        self, stream: SocketStream, client: h11.Connection, source: Address, exchange: Exchange
    ) -> bool:
        """True where the router took ``stream`` over."""
        patience = inbound.HANDSHAKE
        while True:
            async with asyncio.timeout(patience):
                request = await next_event(stream, client)
            if not isinstance(request, h11.Request):
                return False
            user = codec.authenticate(request.headers, self._users)
            if user is None:
                await refuse(stream, codec.UNAUTHORISED)
                return True
            try:
                if request.method == b"CONNECT":
                    destination = codec.parse_authority(request.target.decode("ascii", "replace"))
                    flow = self._flow(stream, source)._replace(destination=destination, user=user)
                    self._connect(stream, client, flow)
                    return True
                address, path = codec.target(request)
            except PeerError:
                await refuse(stream, codec.BAD_REQUEST)
                return True
            if not await exchange.run(request, address, path, user):
                return False
            patience = IDLE

    def _connect(self, stream: SocketStream, client: h11.Connection, flow: Flow) -> None:
        async def accepted(connected: bool) -> None:
            await stream.write(codec.ESTABLISHED if connected else codec.BAD_GATEWAY)

        client.next_event()  # the end of the request: what follows it are the tunnel's bytes
        stream.unread(client.trailing_data[0])
        self._wiring.router.route_stream(flow, stream, accepted)


async def next_event(stream: SocketStream, connection: h11.Connection) -> object:
    """The next h11 event of ``stream``. Raises h11.RemoteProtocolError, OSError."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await stream.read())
    return event


async def refuse(stream: SocketStream, answer: bytes) -> None:
    """Send a last answer and close."""
    try:
        await stream.write(answer)
        await stream.write_eof()
    except OSError:
        pass
    stream.close()


class Inbound(inbound.Inbound):
    type = "http"
    handler = Handler
