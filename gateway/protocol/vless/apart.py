"""One connection for each peer, where datagrams do not say whose they are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.core.address import Address
from gateway.core.contracts import Edge
from gateway.core.errors import GatewayError
from gateway.core.stream import Buffer, PacketConn, Receiver, datagrams

PEERS = 64
"""Connections of one session; a further peer ends the oldest one."""
PENDING = 16
"""Datagrams that wait for one connection; further ones are dropped."""


class Apart:
    """See ``core.stream.PacketConn``. ``dial`` opens the connection for one peer; ``first`` is open already."""

    def __init__(
        self, edge: Edge, dial: Callable[[Address], Awaitable[PacketConn]], peer: Address, first: PacketConn
    ) -> None:
        self._edge = edge
        self._dial = dial
        self._open = {peer: first}
        self._pending: dict[Address, list[bytes]] = {}
        self._tasks: dict[Address, asyncio.Task[None]] = {}
        self._receiver: Receiver | None = None
        self.closed = False

    def send(self, data: Buffer, destination: Address, segment: int = 0) -> None:
        conn = self._open.get(destination)
        if conn is not None and not conn.closed:
            conn.send(data, destination, segment)
            return
        if self.closed:
            return
        waiting = self._pending.get(destination)
        if waiting is None:
            if len(self._pending) >= PEERS:
                return
            waiting = self._pending[destination] = []
            self._tasks[destination] = self._edge.loop.create_task(self._connect(destination))
        waiting += [bytes(one) for one in datagrams(data, segment)][: PENDING - len(waiting)]

    async def _connect(self, destination: Address) -> None:
        try:
            conn = await self._dial(destination)
        except (GatewayError, OSError):
            return  # as a datagram that is lost; the next one tries again
        finally:
            waiting = self._pending.pop(destination, [])
            self._tasks.pop(destination, None)
        if old := self._open.pop(destination, None):
            old.close()
        if len(self._open) >= PEERS:
            self._open.pop(next(iter(self._open))).close()
        self._open[destination] = conn
        if self._receiver is not None:
            conn.start(self._receiver)
        for one in waiting:
            conn.send(one, destination)

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        for conn in self._open.values():
            conn.start(receiver)

    def close(self) -> None:
        self.closed = True
        for task in tuple(self._tasks.values()):
            task.cancel()
        for conn in self._open.values():
            conn.close()
        self._open.clear()
