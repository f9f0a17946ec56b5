"""The whole configuration as typed objects. What each section's class is arrives through the catalog."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gateway.config.merge import Source
from gateway.config.shared import Options

Level = Literal["", "trace", "debug", "info", "warn", "error", "fatal", "panic"]

KEYS = (
    "$schema", "log", "dns", "ntp", "certificate", "endpoints", "inbounds", "outbounds", "route", "services",
    "experimental", "gateway",
)  # fmt: skip


class LogOptions(Options):
    """``log``; ``output`` "" or "stderr" is standard error, else a file."""

    disabled: bool = False
    level: Level = ""
    output: str = ""
    timestamp: bool = False


@dataclass(frozen=True, slots=True)
class Tagged:
    """One inbound, outbound or DNS server: ``path`` is where it stands, ``options`` its decoded object, ``value`` the
    JSON object as written: of two files, equal ones mean the same."""

    tag: str
    type: str
    options: Any
    path: str
    value: Any = None


@dataclass(frozen=True, slots=True)
class Config:
    """A checked configuration. ``route``, ``dns``, ``experimental`` and ``gateway`` are the option objects of their
    packages, ``gateway`` None where the file has no such object (then nothing of the host is touched)."""

    log: LogOptions
    inbounds: tuple[Tagged, ...]
    outbounds: tuple[Tagged, ...]
    dns_servers: tuple[Tagged, ...]
    route: Any
    dns: Any
    gateway: Any
    value: dict[str, Any]
    """The merged JSON value."""
    sources: list[Source]
    notes: tuple[str, ...] = ()
    """Deprecations, each a line that says what to write instead."""
    experimental: Any = None
    directory: Path = field(default_factory=Path)
    """Where relative paths of the configuration start."""
