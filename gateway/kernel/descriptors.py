"""How many files the process may hold: a flow takes two, and the soft limit that a shell or systemd gives is 1024."""

from __future__ import annotations

import os
import resource

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


def used() -> tuple[int, int]:
    """Files that this process has open, and how many it may."""
    return len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
