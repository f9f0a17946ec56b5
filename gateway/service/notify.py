"""What a service manager is told of this process: sd_notify(3) and the watchdog of sd_watchdog_enabled(3).

One datagram of ``NAME=VALUE`` lines to the socket that ``NOTIFY_SOCKET`` names. Without it nothing is told, and nobody
misses it.

The watchdog is for what the heartbeat's child (``kernel/reaper.py``) cannot see: a gateway without such a child, or one
whose child is gone. The child is first and knows excuses that a service manager does not: so the latter waits longer
than the former, in ordinary seconds and in those of ``patience``, and where there is no heartbeat not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, MutableMapping

BEAT = 1.0
"""Seconds between two signs of life, at most; fewer where the watchdog is quick."""
TIMES = 3
"""So many heartbeats, at least, make one period of the watchdog."""
PATIENCE = 150
"""Seconds that the watchdog waits in a block of ``patience``: the heartbeat's child waits 120."""
BLOCKED = 1.0
"""Seconds that a service manager may be too busy to take a word."""
LONGEST = 400
"""Characters of a status line."""


class Notifier:
    """``environment`` is read once, and what it says to us is taken out of it, so that no child speaks for us.
    ``line()`` is one line for a person, told whenever it has changed. Raises nothing, here or later: who cannot be told
    is not told."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ, line: Callable[[], str] = str) -> None:
        names = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
        path, period, process = (environment.pop(name, "") for name in names)
        # "@" stands for the zero byte of an abstract name (unix(7)).
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path.startswith(("/", "@")):
            with contextlib.suppress(OSError):
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.settimeout(BLOCKED)
        mine = self._socket is not None and process in ("", str(os.getpid()))
        self._given = int(period) if mine and period.isdecimal() else 0
        """Microseconds; 0 where there is no watchdog."""
        self._usual = self._told = self._given
        self._patient = 0
        self._line = line
        self._said = ""
        self._timer: asyncio.TimerHandle | None = None

    def start(self, line: Callable[[], str], heartbeat: float) -> None:
        """Signs of life from now on, by the running loop. ``heartbeat`` as for ``agree``."""
        self._line = line
        self.agree(heartbeat)
        if self._socket is not None:
            self._beat()

    def agree(self, heartbeat: float) -> None:
        """The configuration's heartbeat is so many seconds, 0 = there is none."""
        self._usual = max(self._given, int(heartbeat * TIMES * 1e6)) if heartbeat else 0
        self._wait()

    def ready(self) -> None:
        """Started, or done with a reload, whatever came of that."""
        self._say("READY=1", self._status())

    def reloading(self) -> None:
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", "STATUS=applies a configuration")

    def stopping(self) -> None:
        """The last word."""
        self._say("STOPPING=1", "STATUS=stops")
        self.close()

    def close(self) -> None:
        """Any number of times."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """In the block the loop may stand still for a while. Blocks may nest."""
        self._patient += 1
        self._wait()
        try:
            yield
        finally:
            self._patient -= 1
            self._wait()

    def _wait(self) -> None:
        if not self._given:
            return
        wanted = max(self._usual, PATIENCE * 1_000_000) if self._patient and self._usual else self._usual
        if wanted != self._told:
            self._told = wanted
            self._say(f"WATCHDOG_USEC={wanted}", "WATCHDOG=1")

    def _beat(self) -> None:
        seconds = min(BEAT, self._given / 3e6) if self._given else BEAT
        self._timer = asyncio.get_running_loop().call_later(seconds, self._beat)
        words = ["WATCHDOG=1"] if self._told else []
        status = self._status()
        if status != self._said:
            words.append(status)
        if words:
            self._say(*words)

    def _status(self) -> str:
        return f"STATUS={' '.join(self._line().split())[:LONGEST]}"

    def _say(self, *words: str) -> None:
        if self._socket is None:
            return
        self._said = next((word for word in words if word.startswith("STATUS=")), self._said)
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(words).encode(), self._address)
