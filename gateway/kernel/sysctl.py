"""Kernel parameters of this network namespace, written with their original value recorded first.

Names have slashes (``net/ipv4/conf/eth0.7/rp_filter``): an interface name may hold dots.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.core.errors import KernelError

ROOT = Path("/proc/sys")


def path_of(name: str) -> Path:
    """Raises ValueError for a name that leaves /proc/sys."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"sysctl name {name!r}")
    return ROOT / name


def read(name: str) -> str:
    """Raises KernelError where the kernel has no such parameter."""
    try:
        return path_of(name).read_text().strip()
    except OSError as error:
        raise KernelError(f"read sysctl {name}", error.errno or 0) from error


def write(name: str, value: str | int, record: Callable[[dict[str, Any]], None]) -> bool:
    """Set ``name``; True if it had another value, which was then recorded as the inverse. Raises KernelError."""
    text = str(value)
    old = read(name)
    if old == text:
        return False
    record({"kind": "sysctl", "op": "set", "name": name, "value": old, "was": text})
    _put(name, text)
    return True


def undo(step: dict[str, Any]) -> None:
    """Put the original value back. A parameter that is gone (its interface is) or that somebody else has changed since
    is left alone. Raises KernelError."""
    try:
        if path_of(step["name"]).read_text().strip() not in (step["was"], step.get("earlier")):
            return
    except OSError:
        return
    _put(step["name"], step["value"])


def _put(name: str, text: str) -> None:
    try:
        path_of(name).write_text(text)
    except OSError as error:
        raise KernelError(f"write sysctl {name}={text}", error.errno or 0) from error
