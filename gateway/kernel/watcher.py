"""The program of the reaper's child (reaper.py): run by its path, without site packages; it imports nothing of ours.

On its standard input come words of one byte from the gateway: ``BEAT`` (it lives), ``PATIENCE`` (it is about to do
something long), ``DONE`` (it ends on purpose); the end of the pipe is its death. After as many silent seconds as it was
told the gateway counts as hung and is killed, which is a death like any other.

A second counts as silent only where it was a second for us and for the gateway: not where we ourselves were late (the
machine slept, or has no time for anybody), not where the gateway waited for a processor, not under a debugger.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

BEAT, PATIENCE, DONE = b".", b"+", b"x"
LONG = 120
"""Silent seconds after ``PATIENCE``, and before the first word."""
SECOND = 1.0
LATE = 0.5
"""Seconds by which a second of ours, or the gateway's share of it, may be off and still counts."""
ABORT = 0.5
"""Seconds between SIGABRT, which lets it say where it hangs, and SIGKILL: a stopped process hears only the latter."""


class Watched:
    """The gateway: process ``number``, our parent; -1 descriptor where it is gone already."""

    def __init__(self, number: int) -> None:
        self._folder = f"/proc/{number}"
        try:
            self.process = os.pidfd_open(number)
        except OSError:
            self.process = -1
        if os.getppid() != number:
            self.process = -1
        self._waited = self._queue()

    def gone(self, seconds: float) -> bool:
        """Whether it is gone, at the latest after so many seconds."""
        return self.process < 0 or bool(select.select([self.process], [], [], seconds)[0])

    def excused(self) -> bool:
        """Since the last call it could not run for most of a second, or a debugger holds it."""
        before, self._waited = self._waited, self._queue()
        return self._waited - before > LATE * 1e9 or self._traced()

    def kill(self) -> None:
        for number, seconds in ((signal.SIGABRT, ABORT), (signal.SIGKILL, 0.0)):
            if not self.gone(0):
                signal.pidfd_send_signal(self.process, number)
                self.gone(seconds)

    def _queue(self) -> int:
        """Nanoseconds that its first thread has waited for a processor (proc(5), schedstat); 0 where that is not
        counted."""
        try:
            with open(f"{self._folder}/schedstat", encoding="ascii") as file:
                return int(file.read().split()[1])
        except (OSError, ValueError, IndexError):
            return 0

    def _traced(self) -> bool:
        try:
            with open(f"{self._folder}/status", encoding="ascii", errors="replace") as file:
                return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in file)
        except OSError:
            return False


def watch(gateway: Watched, most: int) -> bool:
    """Returns at the end of the pipe: whether the gateway ended on purpose. ``most`` silent seconds after a beat; 0 any
    number."""
    told, silent, allowed = b"", 0, most and LONG
    gateway.excused()
    while True:
        begun = time.monotonic()
        if select.select([0], [], [], SECOND if allowed else None)[0]:
            word = os.read(0, 4096)[-1:]
            if not word:
                return told == DONE
            told, silent = word, 0
            allowed = most and {BEAT: most, PATIENCE: LONG}.get(word, 0)
            continue
        excused = gateway.excused()
        # CLOCK_MONOTONIC stands still while the machine is suspended.
        late = time.monotonic() - begun > SECOND + LATE
        silent = 0 if late else silent if excused else silent + 1
        if silent >= allowed:
            gateway.kill()
            allowed = 0


def main(name: str, last: bytes, into: int, request: bytes, number: int, most: int, end: float, late: float) -> None:
    """See ``reaper.Will`` for the first three; ``request`` deletes entries; ``end`` and ``late`` are its ``EXIT`` and
    ``LATE``."""
    for ignored in (signal.SIGINT, signal.SIGHUP) + (() if name else (signal.SIGTERM,)):
        signal.signal(ignored, signal.SIG_IGN)
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, 0))
    sock.settimeout(5)

    def delete() -> None:
        sock.send(request)
        sock.recv(4096)

    gateway = Watched(number)
    os.write(1, b"r")
    os.close(1)
    ended = watch(gateway, most)
    if last:
        os.write(sock.fileno() if into < 0 else into, last)
    delete()
    if not ended:
        gateway.gone(end)
        delete()
    time.sleep(late)
    delete()
    while name:
        signal.pause()


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        words[0], bytes.fromhex(words[1]), int(words[2]), bytes.fromhex(words[3]), int(words[4]), int(words[5]),
        float(words[6]), float(words[7]),
    )  # fmt: skip
