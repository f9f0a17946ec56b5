"""How many files the process may hold: a flow takes two, and the soft limit that a shell or systemd gives is 1024. And
which of them ends first when it is killed: the one with the highest number, since the kernel lets go of them last first
(fput in fs/file_table.c leaves it to a task_work, and kernel/task_work.c runs those so).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

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


HIGH = 1000
"""libnftables waits by select(2), which knows numbers below 1024. Files of flows may come above: they end at once."""


@contextmanager
def ends_first() -> Iterator[None]:
    """What is opened in the block gets a number above ``HIGH``, near the limit where that is lower. Raises OSError."""
    last = min(HIGH, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 64)
    kept = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
    try:
        while kept[-1] < last:
            kept.append(os.dup(kept[0]))
        yield
    finally:
        for fd in kept:
            os.close(fd)


def used() -> tuple[int, int]:
    """Files that this process has open, and how many it may."""
    return len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
