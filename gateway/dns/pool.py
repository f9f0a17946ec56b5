"""Connections to one encrypted name server, each with many queries at a time; what they speak is the line's business.

A query is not lost with its connection: where the server closed one that was idle, or closes one before it has
answered, the query goes out again on another (RFC 7766 section 6.2.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gateway.core.errors import DialError

MOST = 8
"""Connections."""
SPREAD = 32
"""Queries that wait on one connection before there is another."""
TRIES = 3
WAIT = 4.0
"""Seconds after which a query goes out again. A connection on which nothing was heard meanwhile takes no others: a
network that has forgotten it says nothing."""


class Closed(DialError):
    """The connection ended before the answer came: another may bring it."""


class Line(Protocol):
    """One connection."""

    @property
    def room(self) -> int:
        """Queries at a time."""

    @property
    def closed(self) -> bool:
        """Takes no queries any more."""

    @property
    def busy(self) -> int:
        """Queries that wait."""

    @property
    def heard(self) -> int:
        """Grows with whatever comes from the server."""

    async def ask(self, query: bytes) -> bytes:
        """Counted in ``busy`` before anything is waited for. Raises Closed, PeerError, DialError."""

    def retire(self) -> None:
        """No new queries; closes when the last one is answered."""

    def close(self) -> None: ...


def promise() -> asyncio.Future[Any]:
    """A future whose error need not be looked at: who waited may be gone when the connection ends."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


class Pool:
    """``dial`` opens a connection, or raises DialError and whatever a detour raises."""

    def __init__(self, dial: Callable[[], Awaitable[Line]]) -> None:
        self._dial = dial
        self._lines: list[Line] = []
        self._dialling: asyncio.Task[Line] | None = None
        self._freed = asyncio.Event()

    async def ask(self, query: bytes) -> bytes:
        """Raises DialError, PeerError, OSError, and whatever a detour raises."""
        failure: Exception | None = None
        for number in range(TRIES):
            # The others may be as dead as the first.
            line = await self._line() if number < TRIES - 1 else await self._open()
            before = line.heard
            try:
                async with asyncio.timeout(WAIT):
                    return await line.ask(query)
            except TimeoutError:
                if line.heard == before:
                    line.retire()
                failure = DialError(f"no answer within {WAIT:g} s")
            except Closed as error:
                failure = error
            finally:
                self._freed.set()
        assert failure is not None
        raise failure

    async def _line(self) -> Line:
        while True:
            lines = self._lines = [line for line in self._lines if not line.closed]
            best = min((line for line in lines if line.busy < line.room), key=lambda line: line.busy, default=None)
            if best is not None and (best.busy < SPREAD or len(lines) >= MOST):
                return best
            if len(lines) < MOST:
                made = await self._open()
                if made.closed:
                    return made  # which costs the query a try: nobody dials for ever
            else:
                self._freed.clear()
                await self._freed.wait()

    async def _open(self) -> Line:
        """One at a time: who needs a connection meanwhile waits for the same."""
        task = self._dialling
        if task is None or task.done():
            task = self._dialling = asyncio.ensure_future(self._dialled())
            task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def _dialled(self) -> Line:
        line = await self._dial()
        self._lines.append(line)
        return line

    def _done(self, task: asyncio.Task[Line]) -> None:
        if self._dialling is task:
            self._dialling = None
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    def close(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        for line in self._lines:
            line.close()
        self._lines.clear()
