"""How many files the process may hold: a flow takes two, and the soft limit that a shell or systemd gives is 1024.

And their numbers. libnftables needs low ones. When the process is killed the one with the highest number ends first,
since the kernel lets go of them last first (fput in fs/file_table.c leaves it to a task_work, and kernel/task_work.c
runs those so).
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

WANTED = 65536
"""Flows of 16 devices at their caps; systemd's own hard limit is higher (524288)."""


def raise_limit(wanted: int = WANTED) -> int:
    """Raise RLIMIT_NOFILE to ``wanted``, or to the hard limit where that is lower and we may not raise it; never lower
    it. The limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
        except (ValueError, PermissionError):
            wanted = hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


SELECT = 1024
"""libnftables waits by select(2), which knows numbers below this one, and aborts the process at any other."""
KEPT = 8
"""Numbers below ``SELECT`` that are kept for it, the highest: files of flows take all others."""
SPARE = 64
"""Files that may still be opened while all lower numbers are taken, where the limit is low."""

_kept: list[int] = []
_lock = Lock()


def keep() -> None:
    """Take the highest ``KEPT`` numbers that are free below ``SELECT``; to be called while few files are open, and
    after one of them is free again. Any number of times; raises nothing."""
    # Who is in ``low`` does it at its end.
    if _lock.acquire(blocking=False):
        try:
            _fill()
        finally:
            _lock.release()


def _fill() -> None:
    if len(_kept) == KEPT:
        return
    top = min(SELECT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE)
    with suppress(OSError):
        last = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        for number in range(top - 1, max(top - SPARE, 0), -1):
            if len(_kept) == KEPT:
                break
            _keep(fcntl.fcntl(last, fcntl.F_DUPFD_CLOEXEC, number), top)
        _keep(last, top)  # the number may be the only one
    _kept.sort()


def _keep(fd: int, top: int) -> None:
    if top - SPARE <= fd < top and len(_kept) < KEPT:
        _kept.append(fd)
    else:
        os.close(fd)


@contextmanager
def low(*, first: bool = False) -> Iterator[None]:
    """The file that is opened in the block gets a number below ``SELECT``, however many are open; with ``first`` the
    highest that is free there, so that none ends before it but those of flows, which end at once. One thread at a time.
    Raises OSError where there is none."""
    with _lock:
        _fill()
        filling: list[int] = []
        try:
            if _kept:
                number = _kept.pop(-1 if first else 0)
                with suppress(OSError):  # no more may be opened: so all lower ones are taken
                    while first and (not filling or filling[-1] < number):
                        filling.append(os.dup(number))
                os.close(number)
            else:
                os.close(found := os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
                if found >= SELECT:
                    raise OSError(errno.EMFILE, f"no number below {SELECT} is free")
            yield
        finally:
            for fd in filling:
                os.close(fd)
            _fill()


def used() -> tuple[int, int]:
    """Files that this process has open, and how many it may."""
    return len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
