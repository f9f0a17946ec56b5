"""What inbounds with a handshake on one TCP port share: users, listener, and how a connection begins and fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from gateway.config.shared import UserListenOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import PeerError
from gateway.transport.listen import StreamListener
from gateway.transport.tcp import SocketStream

HANDSHAKE = 15.0
"""Seconds that a client may take to say what it wants."""


class Handler:
    """Serves one connection after another. ``kind`` is the inbound's type; ``users``: password by name, and empty where
    everybody may enter."""

    def __init__(self, tag: str, kind: str, users: Mapping[str, str], wiring: Wiring) -> None:
        self._tag = tag
        self._type = kind
        self._users = users
        self._wiring = wiring

    async def serve(self, stream: SocketStream, source: Address) -> None:
        """From the client's first byte to the router. Closes ``stream`` on every failure."""
        try:
            await self.greet(stream, source)
        except (OSError, PeerError, TimeoutError):
            stream.close()
        except asyncio.CancelledError:
            stream.close()
            raise

    async def greet(self, stream: SocketStream, source: Address) -> None:
        """Hand ``stream`` to the router or close it. Raises OSError, PeerError, TimeoutError; then ``serve`` closes."""
        raise NotImplementedError


class Inbound:
    """See ``core.contracts.Inbound``; a subclass names its ``type`` and its ``handler``."""

    type: str
    handler: Callable[[str, str, Mapping[str, str], Wiring], Handler]

    def __init__(self, tag: str, options: UserListenOptions, wiring: Wiring) -> None:
        self.tag = tag
        users = {user.username: user.password for user in options.users}
        self._listener = StreamListener(options, wiring, self.handler(tag, self.type, users, wiring).serve)

    async def start(self) -> None:
        """Raises OSError."""
        await self._listener.start()

    async def close(self) -> None:
        await self._listener.close()
