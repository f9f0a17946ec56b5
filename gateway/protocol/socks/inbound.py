"""SOCKS clients come in here."""

from __future__ import annotations

import asyncio
import socket

from gateway.core.address import Address
from gateway.core.flow import Flow
from gateway.kernel.sockopt import address_of
from gateway.protocol.socks import codec
from gateway.protocol.socks.associate import Association
from gateway.transport import inbound
from gateway.transport.tcp import SocketStream


class Handler(inbound.Handler):
    """``mixed`` uses it too."""

    async def greet(self, stream: SocketStream, source: Address) -> None:
        async with asyncio.timeout(inbound.HANDSHAKE):
            server = await self._shake(stream)
        if server is None or server.request is None:
            stream.close()
        elif server.request.command == codec.ASSOCIATE:
            await self._associate(stream, source, server.request)
        else:
            self._connect(stream, source, server.request, server.rest)

    async def _shake(self, stream: SocketStream) -> codec.Server | None:
        server = codec.Server(self._users)
        while server.request is None:
            data = await stream.read()
            if not data:
                return None
            answer = server.receive(data)
            if answer:
                await stream.write(answer)
            if server.failed:
                return None
        return server

    def _connect(self, stream: SocketStream, source: Address, request: codec.Request, rest: bytes) -> None:
        bound = address_of(stream.sock.getsockname())

        async def accepted(connected: bool) -> None:
            await stream.write(codec.reply(request.version, codec.OK if connected else codec.FAILED, bound))

        stream.unread(rest)
        flow = Flow("tcp", self._tag, self._type, source, request.destination, request.user, local=bound)
        self._wiring.router.route_stream(flow, stream, accepted)

    async def _associate(self, stream: SocketStream, source: Address, request: codec.Request) -> None:
        local = address_of(stream.sock.getsockname())
        try:
            association = Association(self._tag, self._type, request.user, self._wiring, local, source)
        except OSError:
            await stream.write(codec.reply(5, codec.FAILED))
            stream.close()
            return
        try:
            stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await stream.write(codec.reply(5, codec.OK, association.bound))
            while await stream.read():
                pass  # nothing more is said on it; its end is the end of the association
        finally:
            association.close()
            stream.close()


class Inbound(inbound.Inbound):
    type = "socks"
    handler = Handler
