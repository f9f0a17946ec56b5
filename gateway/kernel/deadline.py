"""The program of the rescue's child (rescue.py): run by its path, without site packages; it imports nothing of ours.

It waits for the first of three: the gateway's word that there is nothing to undo any more (``DONE``), the end of the
pipe (the gateway is dead), the deadline. At the deadline the gateway is asked to end and undo by itself; one that hangs
is killed. As long as the folder is there that says so, there is something to undo: this process then becomes the
program that does it.

The clock is CLOCK_BOOTTIME, which counts a suspended machine's time too; select(2) does not, so that it is asked again
each second.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

DONE = b"x"
SECOND = 1.0
EXIT = 60.0
"""Seconds in which a dying process is gone; its pipe may close long before."""


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Gateway:
    """Process ``number``, our parent; -1 descriptor where it is gone already. The pipe is standard input."""

    def __init__(self, number: int) -> None:
        try:
            self._process = os.pidfd_open(number)
        except OSError:
            self._process = -1
        if os.getppid() != number:
            self._process = -1

    def word(self, until: float) -> bytes | None:
        """What it says: ``DONE``, b"" for its death; None where ``until`` has come."""
        while (left := until - boottime()) > 0:
            if select.select([0], [], [], min(left, SECOND))[0]:
                return os.read(0, 4096)[-1:]
        return None

    def gone(self, seconds: float) -> bool:
        return self._process < 0 or bool(select.select([self._process], [], [], seconds)[0])

    def signal(self, number: int) -> None:
        if not self.gone(0):
            try:
                signal.pidfd_send_signal(self._process, number)
            except ProcessLookupError:
                pass


def wait(gateway: Gateway, until: float, grace: float) -> bool:
    """Returns once the gateway needs nothing of us (False), or is dead (True). ``grace``: seconds in which it may end
    by itself after ``until``."""
    said = gateway.word(until)
    if said is None:
        gateway.signal(signal.SIGTERM)
        said = gateway.word(boottime() + grace)
    if said == DONE:
        return False
    if said is None or not gateway.gone(EXIT):
        gateway.signal(signal.SIGKILL)
        gateway.gone(EXIT)
    return True


def main(number: int, until: float, grace: float, folder: str, command: list[str]) -> None:
    # Ctrl-C, the end of a terminal, a service manager's stop: they are the gateway's to heed, and its end is ours.
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    gateway = Gateway(number)
    os.write(1, b"r")
    os.dup2(2, 1)
    if wait(gateway, until, grace) and os.path.isdir(folder):
        os.execv(command[0], command)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(int(words[0]), float(words[1]), float(words[2]), words[3], words[4:])
