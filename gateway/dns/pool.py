"""Connections to one encrypted name server, each with many queries at a time; what they speak is the line's business.

A query is not lost with its connection: where the server closed one that was idle, or closes one before it has
answered, the query goes out again on another (RFC 7766 section 6.2.4).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gateway.core.errors import DialError
from gateway.core.stream import Stream

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


class Multiplexed:
    """A ``Line`` with many queries at a time over one stream: how it is written to, and how it ends. What is spoken is
    in ``_exchange``, one query's, and ``_read``, which runs as long as the line and calls ``_end``."""

    def __init__(self, stream: Stream, server: str) -> None:
        self._stream = stream
        self._server = server
        self._promises: set[asyncio.Future[Any]] = set()
        self._writing = asyncio.Lock()
        self._retired = False
        self.busy = 0
        self.closed = False
        self.heard = 0
        self._task = asyncio.ensure_future(self._read())

    async def ask(self, query: bytes) -> bytes:
        self.busy += 1
        try:
            return await self._exchange(query)
        finally:
            self.busy -= 1
            if self._retired and not self.busy:
                self.close()

    async def _exchange(self, query: bytes) -> bytes:
        raise NotImplementedError

    async def _read(self) -> None:
        raise NotImplementedError

    def _promise(self) -> asyncio.Future[Any]:
        """A future that fails with the line. Its error need not be looked at: who waited may be gone then."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._promises.add(future)
        future.add_done_callback(self._settled)
        return future

    def _settled(self, future: asyncio.Future[Any]) -> None:
        self._promises.discard(future)
        if not future.cancelled():
            future.exception()

    async def _write(self, data: Callable[[], bytes]) -> None:
        """What ``data`` gives once it is its turn; nothing of nothing. Raises Closed."""
        try:
            async with self._writing:
                if wire := data():
                    await self._stream.write(wire)
        except OSError as error:
            self.close()
            raise Closed(f"{self._server}: {error.strerror or error}") from error
        except BaseException:
            self.close()  # half a message may be on its way
            raise

    def retire(self) -> None:
        self.closed = self._retired = True
        if not self.busy:
            self.close()

    def close(self) -> None:
        self._task.cancel()
        self._end("closed")

    def _end(self, said: str) -> None:
        self.closed = True
        self._stream.close()
        for future in self._promises:
            if not future.done():
                future.set_exception(Closed(f"{self._server}: {said}"))


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
