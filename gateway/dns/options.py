"""The ``dns`` object but for its servers, which the loader decodes by their types. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.config.decode import decode
from gateway.config.shared import Options, Strategy
from gateway.core.errors import ConfigError
from gateway.dns.cache import CAPACITY
from gateway.dns.rule import Route, Rule, parse_rule


class DNSFields(Options):
    """``dns`` as msgspec reads it; ``rules`` are read further by ``decode_section``."""

    servers: list[Any] = msgspec.field(default_factory=list)
    rules: list[dict[str, Any]] = msgspec.field(default_factory=list)
    final: str = ""
    strategy: Strategy = ""
    disable_cache: bool = False
    disable_expire: bool = False
    independent_cache: bool = False
    cache_capacity: int = 0
    reverse_mapping: bool = False


@dataclass(frozen=True, slots=True)
class DNSConfig:
    """``dns``, checked. ``final`` is "" where there are no servers (the system's resolvers are used then), else a
    server's tag; ``cache_capacity`` in answers, at least 1024. Rule sets are the router's to check."""

    rules: tuple[Rule, ...] = ()
    final: str = ""
    strategy: Strategy = ""
    disable_cache: bool = False
    disable_expire: bool = False
    independent_cache: bool = False
    cache_capacity: int = CAPACITY
    reverse_mapping: bool = False


def decode_section(value: Any, path: str = "dns") -> DNSConfig:
    """Raises ConfigError with its JSON path."""
    # Without the servers: their fields are checked by their own types.
    servers = value.get("servers", []) if isinstance(value, dict) else []
    rest = {key: inside for key, inside in value.items() if key != "servers"} if isinstance(value, dict) else value
    fields = decode(DNSFields, rest, path, "DNSOptions")
    tags = _tags(servers)
    rules = tuple(parse_rule(rule, f"{path}.rules[{index}]") for index, rule in enumerate(fields.rules))
    for rule in rules:
        if isinstance(rule.action, Route):
            _known(rule.action.server, tags, f"{rule.path}.server")
    if fields.final:
        _known(fields.final, tags, f"{path}.final")
    if not 0 <= fields.cache_capacity < 1 << 32:
        raise ConfigError("a number of answers from 0 to 4294967295", f"{path}.cache_capacity")
    return DNSConfig(
        rules, fields.final or (tags[0] if tags else ""), fields.strategy, fields.disable_cache, fields.disable_expire,
        fields.independent_cache, max(fields.cache_capacity, CAPACITY), fields.reverse_mapping,
    )  # fmt: skip


def _tags(servers: Any) -> list[str]:
    """As the loader has them: the tag, else the index."""
    if not isinstance(servers, list):
        return []
    return [
        str(server.get("tag") or index) if isinstance(server, dict) else str(index)
        for index, server in enumerate(servers)
    ]


def _known(tag: str, tags: list[str], path: str) -> None:
    if tag not in tags:
        raise ConfigError(f'no DNS server has the tag "{tag}"; tags: {", ".join(tags) or "none"}', path)
