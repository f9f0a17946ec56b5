"""The one table of every type the JSON may name that is built: kind and type to module, imported on first use.

A router with three protocols never imports twenty. A type that sing-box has and this table lacks is reported as not
built yet (``config.anchor`` knows the names).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Literal, NamedTuple

from gateway.core.errors import ConfigError

_P = "gateway.protocol."
_D = "gateway.dns.server."


class Entry(NamedTuple):
    """``module`` has ``options`` (class OPTIONS names) and the runtime class; both are looked up by name on import."""

    module: str
    options: str
    runtime: str
    """``module:Class`` relative to ``module``."""


def _protocol(name: str, side: Literal["inbound", "outbound"]) -> Entry:
    title = side.capitalize()
    return Entry(_P + name, f"options:{title}Options", f"{side}:{title}")


def _server(name: str) -> Entry:
    return Entry(_D + name, ":Options", ":Server")


INBOUNDS = ("direct", "http", "mixed", "redirect", "shadowsocks", "socks", "tproxy", "tun")
OUTBOUNDS = ("block", "direct", "http", "selector", "shadowsocks", "socks", "trojan", "urltest", "vless")
DNS_SERVERS = ("dhcp", "fakeip", "hosts", "https", "local", "tcp", "tls", "udp")

SECTIONS = {
    "route": ("gateway.route.options", "parse_route"),
    "dns": ("gateway.dns.options", "decode_section"),
    "experimental": ("gateway.service.options", "decode_section"),
    "gateway": ("gateway.options", "decode_section"),
}

TABLE: dict[str, dict[str, Entry]] = {
    "inbound": {name: _protocol(name, "inbound") for name in INBOUNDS},
    "outbound": {name: _protocol(name, "outbound") for name in OUTBOUNDS},
    "dns": {name: _server(name) for name in DNS_SERVERS},
}


def names(kind: str) -> list[str]:
    """The built types of ``kind``, sorted."""
    return sorted(TABLE[kind])


def options(kind: str, name: str) -> type[Any]:
    """The msgspec class of the type's JSON object. Raises KeyError where the type is not built."""
    return _load(TABLE[kind][name], TABLE[kind][name].options)


def runtime(kind: str, name: str) -> type[Any]:
    """The class that runs it: ``Class(tag, options, wiring)``."""
    return _load(TABLE[kind][name], TABLE[kind][name].runtime)


def section(name: str) -> Callable[[Any, str], Any]:
    """Decoder of a top-level object, ``(JSON value, path) -> options``: one of ``SECTIONS``."""
    module, decoder = SECTIONS[name]
    if find_spec(module) is None:
        return lambda value, path: _not_built(value, path)
    found: Callable[[Any, str], Any] = getattr(import_module(module), decoder)
    return found


def _not_built(value: Any, path: str) -> None:
    if value:
        raise ConfigError("exists in sing-box but is not built yet; remove it", path)


def _load(entry: Entry, place: str) -> type[Any]:
    file, _, attribute = place.partition(":")
    module: ModuleType = import_module(f"{entry.module}.{file}" if file else entry.module)
    found: type[Any] = getattr(module, attribute)
    return found
