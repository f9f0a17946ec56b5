"""One thing looked at, and the ways of looking: programs, kernel parameters."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
TIMEOUT = 20.0
"""Seconds that one command may take; another nft in a tight loop can hold ours up."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``remedy`` is a command for a shell or a kernel option, empty where all is well or nothing
    helps; several commands have "; " between them. ``needed`` False: the gateway does without it, ``detail`` says at
    what cost."""

    name: str
    ok: bool
    detail: str = ""
    remedy: str = ""
    needed: bool = True


def tool(name: str) -> str | None:
    """Where a program is, also where PATH lacks the sbin folders."""
    return shutil.which(name) or shutil.which(name, path=PATH)


def text(program: str, *words: str) -> str:
    """What a program prints; "" where it is not installed. Raises OSError, SubprocessError."""
    path = tool(program)
    if path is None:
        return ""
    command = [path, *words]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=True)
    return done.stdout


def answer(program: str, *words: str) -> Any:
    """What a program prints as JSON; None where it is not installed. Raises OSError, SubprocessError, ValueError."""
    return None if tool(program) is None else json.loads(text(program, *words) or "[]")


def capability(number: int) -> bool:
    """Whether this process has it in effect (linux/capability.h)."""
    status = Path("/proc/self/status").read_text()
    held = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(held, 16) >> number & 1)


def parameter(name: str) -> str | None:
    """A kernel parameter by its name below /proc/sys; None where the kernel has none."""
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return None
