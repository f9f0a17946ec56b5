"""SOCKS clients come in here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence

from gateway.config.shared import User
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import PeerError
from gateway.core.flow import Flow
from gateway.kernel.sockopt import address_of
from gateway.protocol.socks import codec
from gateway.protocol.socks.associate import Association
from gateway.protocol.socks.options import InboundOptions
from gateway.transport.listen import StreamListener
from gateway.transport.tcp import SocketStream

HANDSHAKE = 15.0
"""Seconds that a client may take to say what it wants."""


def users_of(users: Sequence[User]) -> dict[str, str]:
    return {user.username: user.password for user in users}


class Handler:
    """Serves one connection after another; ``mixed`` uses it too."""

    def __init__(self, tag: str, kind: str, users: Mapping[str, str], wiring: Wiring) -> None:
        self._tag = tag
        self._type = kind
        self._users = users
        self._wiring = wiring

    async def serve(self, stream: SocketStream, source: Address) -> None:
        """From the client's first byte to the router. Closes ``stream`` on every failure."""
        try:
            async with asyncio.timeout(HANDSHAKE):
                server = await self._shake(stream)
            if server is None:
                stream.close()
            elif server.request is not None and server.request.command == codec.ASSOCIATE:
                await self._associate(stream, source, server.request)
            elif server.request is not None:
                self._connect(stream, source, server.request, server.rest)
        except (OSError, PeerError, TimeoutError):
            stream.close()
        except asyncio.CancelledError:
            stream.close()
            raise

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
        flow = Flow("tcp", self._tag, self._type, source, request.destination, request.user)
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


class Inbound:
    type = "socks"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        handler = Handler(tag, self.type, users_of(options.users), wiring)
        self._listener = StreamListener(options, wiring, handler.serve)

    async def start(self) -> None:
        await self._listener.start()

    async def close(self) -> None:
        await self._listener.close()
