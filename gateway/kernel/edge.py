"""The thin edge: one epoll set for all flows' sockets, driven from inside the asyncio loop.

An asyncio transport costs 2 to 4 times the CPU of a non-blocking socket per byte and per connection (measured). So
flows keep raw sockets, registered in one epoll set whose own descriptor the asyncio loop watches: one loop callback per
wake-up serves every ready flow, and registering costs one epoll_ctl(2).
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from socket import socket

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HUP = select.EPOLLHUP | select.EPOLLERR
RDHUP = select.EPOLLRDHUP

Handler = Callable[[int], None]

BATCH = 256
"""Events served per wake-up; the rest waits for the next turn of the loop, so timers and handshakes get their turn."""


class Edge:
    """See ``core.contracts.Edge``. One an event loop; ``close()`` before the loop ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._waiting: dict[int, list[asyncio.Future[None] | None]] = {}
        self._gone: set[int] = set()
        loop.add_reader(self._epoll.fileno(), self._turn)

    def _turn(self) -> None:
        handlers = self._handlers
        gone = self._gone
        gone.clear()
        for fd, events in self._epoll.poll(0, BATCH):
            handler = handlers.get(fd)
            if handler is None or fd in gone:
                continue  # removed in this turn; a new socket may have its number already
            try:
                handler(events)
            except Exception as error:
                # A handler ends its own flow on the errors it knows; anything else is a bug that must not stop others.
                self.remove(fd)
                self.loop.call_exception_handler({"message": "edge handler failed", "exception": error})

    def add(self, fd: int, events: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def rehandle(self, fd: int, handler: Handler) -> None:
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        self._waiting.pop(fd, None)  # who waited and was cancelled may not have run before the number is used again
        if self._handlers.pop(fd, None) is not None:
            self._gone.add(fd)
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed before it was removed: the kernel dropped it already

    def forget(self, fd: int) -> None:
        """As ``remove``, for a descriptor without duplicates that is closed next: close(2) itself ends its
        registration."""
        self._waiting.pop(fd, None)
        if self._handlers.pop(fd, None) is not None:
            self._gone.add(fd)

    async def readable(self, sock: socket) -> None:
        """Wait until ``sock`` can be read; also ends on error or hang-up, which the read then reports."""
        await self._wait(sock.fileno(), 0)

    async def writable(self, sock: socket) -> None:
        await self._wait(sock.fileno(), 1)

    async def _wait(self, fd: int, side: int) -> None:
        future: asyncio.Future[None] = self.loop.create_future()
        slots = self._waiting.get(fd)
        if slots is None:
            slots = self._waiting[fd] = [None, None]
            slots[side] = future
            self.add(fd, OUT if side else IN, lambda events: self._wake(fd, events))
        else:
            slots[side] = future
            self._epoll.modify(fd, IN | OUT)
        try:
            await future
        finally:
            if slots[side] is future:
                self._done(fd, slots, side)

    def _wake(self, fd: int, events: int) -> None:
        slots = self._waiting[fd]
        for side, bits in ((0, IN | HUP), (1, OUT | HUP)):
            future = slots[side]
            if future is not None and events & bits:
                self._done(fd, slots, side)
                if not future.done():
                    future.set_result(None)

    def _done(self, fd: int, slots: list[asyncio.Future[None] | None], side: int) -> None:
        slots[side] = None
        if self._waiting.get(fd) is not slots:
            return
        if slots[1 - side] is None:
            self.remove(fd)
        else:
            try:
                self._epoll.modify(fd, IN if side else OUT)
            except (OSError, ValueError):
                pass

    def close(self) -> None:
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._handlers.clear()
