"""CLOCK_BOOTTIME: a clock that counts suspended time too, and a timer on it for the event loop.

asyncio's own timers run on CLOCK_MONOTONIC, which stands still in suspend, so a lease would outlive itself. Python 3.11
has no timerfd calls; they come from libc (timerfd_create(2)).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import struct
import time
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE = 1
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC


def boottime() -> float:
    """Seconds since boot, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's id of this boot; empty where it has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class Timer:
    """Calls ``expired`` in the running loop once ``boottime()`` has reached what ``set`` was given last."""

    def __init__(self, expired: Callable[[], None]) -> None:
        self._expired = expired
        self._fd = _libc.timerfd_create(time.CLOCK_BOOTTIME, _FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._readable)

    def set(self, at: float) -> None:
        """``math.inf`` disarms; a moment that has passed fires at once."""
        # An all-zero value would disarm.
        whole, part = (0, 0) if math.isinf(at) else (int(max(at, 0)), int(at % 1 * 1e9) or 1)
        spec = struct.pack("=qqqq", 0, 0, whole, part)
        if _libc.timerfd_settime(self._fd, _ABSOLUTE, spec, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 8)
            self._expired()
