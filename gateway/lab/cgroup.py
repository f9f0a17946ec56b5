"""The lab's own part of the cgroup2 tree: every process it starts is in a fresh group, and ends with it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from gateway.lab.netns import LabError


def root() -> Path:
    """Where cgroup2 is mounted; raises :class:`LabError` where it is not."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "cgroup2":
            return Path(place)
    raise LabError("no cgroup2 is mounted; the lab needs one to keep hold of its processes")


def pids(group: Path) -> list[int]:
    """Processes in ``group`` and below it."""
    found = []
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            found += [int(word) for word in Path(folder, "cgroup.procs").read_text().split()]
    return found


def kill(group: Path, timeout: float = 10) -> None:
    """End every process of ``group`` and below (SIGKILL) and wait until none is left.

    Raises :class:`LabError` if some outlive ``timeout`` seconds (uninterruptible sleep).
    """
    if not group.exists():
        return
    deadline = time.monotonic() + timeout
    (group / "cgroup.kill").write_text("1")
    while "populated 1" in (group / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise LabError(f"processes {pids(group)} in {group} do not end")
        time.sleep(0.005)


def remove(group: Path) -> None:
    """Kill what is in ``group``, then remove it and what is below. Silent if it is gone."""
    kill(group)
    deadline = time.monotonic() + 5
    while True:
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(folder)
            return
        except OSError as error:  # EBUSY for a moment, while the kernel lets the last process go
            if time.monotonic() > deadline:
                raise LabError(f"{group} cannot be removed: {error}") from error
            time.sleep(0.01)
