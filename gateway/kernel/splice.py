"""Pipes for splice(2), borrowed for one wake-up and kept only while they hold bytes that the far socket did not take.

So pipes are as many as flows that are stalled, not as flows. How much a flow may hold shrinks with the number of
stalled ones: that bounds memory, not the number of flows.
"""

from __future__ import annotations

import fcntl
import os

SPLICE_F_MOVE, SPLICE_F_NONBLOCK = 1, 2
FLAGS = SPLICE_F_MOVE | SPLICE_F_NONBLOCK
F_SETPIPE_SZ = 1031

SIZE = 1 << 20
POOL = 16
"""Empty pipes kept for the next flow."""
MOST = 256
"""Pipes at all; beyond, bytes are copied."""


class Pipe:
    """``held`` bytes are in it."""

    __slots__ = ("held", "read", "write")

    def __init__(self) -> None:
        """Raises OSError where no descriptor is left."""
        self.read, self.write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self.write, F_SETPIPE_SZ, SIZE)
        except OSError:
            pass  # over pipe-user-pages-soft: 64 KB, as it came

    def fill(self, source: int, count: int) -> int:
        """At most ``count`` bytes from socket ``source``; 0 at its end of stream. Raises OSError, BlockingIOError."""
        moved = os.splice(source, self.write, count, flags=FLAGS)
        self.held += moved
        return moved

    def drain(self, target: int) -> bool:
        """Into socket ``target`` as far as it takes it; True where the pipe is empty. Raises OSError."""
        try:
            while self.held:
                self.held -= os.splice(self.read, target, self.held, flags=FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """The pool of one event loop, and the count of stalled directions that bounds what each may hold."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._lent = 0
        self.stalled = 0

    def take(self) -> Pipe | None:
        """An empty pipe; None where there are ``MOST``, or the process is out of descriptors."""
        if self._lent >= MOST:
            return None
        try:
            pipe = self._free.pop() if self._free else Pipe()
        except OSError:
            return None
        self._lent += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Back; one that still holds bytes of a broken flow is closed."""
        self._lent -= 1
        if pipe.held or len(self._free) >= POOL:
            pipe.close()
        else:
            self._free.append(pipe)

    @property
    def most(self) -> int:
        """Bytes that one direction may take in one go (and so hold while it is stalled): 1 MB, 64 KB once 64
        directions are stalled, 16 KB from 1024 on."""
        return SIZE if self.stalled < 64 else 1 << 16 if self.stalled < 1024 else 1 << 14

    def close(self) -> None:
        for pipe in self._free:
            pipe.close()
        self._free.clear()
