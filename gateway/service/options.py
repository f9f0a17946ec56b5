"""The ``experimental`` object: what stands beside the data path and is switched on by name."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.config.decode import decode
from gateway.config.fields import Duration
from gateway.config.shared import Options
from gateway.core.errors import ConfigError

WEEK = 7 * 86400.0


class CacheFileOptions(Options):
    """``path`` starts at the working folder. What one ``cache_id`` has stored no other one reads. ``store_rdrc``: keep
    that a DNS server's answer was not taken by an address rule, for ``rdrc_timeout``."""

    enabled: bool = False
    path: str = "cache.db"
    cache_id: str = ""
    store_fakeip: bool = False
    store_rdrc: bool = False
    rdrc_timeout: Duration = Duration(WEEK)

    def __post_init__(self) -> None:
        self.path = self.path or "cache.db"
        self.rdrc_timeout = self.rdrc_timeout or Duration(WEEK)


class ExperimentalOptions(Options):
    cache_file: CacheFileOptions = msgspec.field(default_factory=CacheFileOptions)


def decode_section(value: Any, path: str) -> ExperimentalOptions:
    """Raises ConfigError with its JSON path."""
    options = decode(ExperimentalOptions, value, path, "ExperimentalOptions")
    if options.cache_file.rdrc_timeout < 0:
        raise ConfigError('not in the past: write for example "7d"', f"{path}.cache_file.rdrc_timeout")
    return options
