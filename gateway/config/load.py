"""Files to a checked ``Config``: read, merge, decode each object by its type, check tags and references.

Every error is a ConfigError with file, line and JSON path. Nothing of the host is looked at but the files themselves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gateway.config import anchor
from gateway.config.decode import decode
from gateway.config.legacy import modern_dns
from gateway.config.merge import Source, locate, merge
from gateway.config.root import KEYS, Config, LogOptions, Tagged
from gateway.config.text import parse, split_path
from gateway.core.errors import ConfigError

MAX_FILE = 64 << 20
"""Bytes of one configuration file."""


class Catalog(Protocol):
    """What ``gateway.catalog`` offers; an argument, for the arrows point down."""

    def names(self, kind: str, /) -> list[str]: ...

    def options(self, kind: str, name: str, /) -> type[Any]: ...

    def section(self, name: str, /) -> Callable[[Any, str], Any]:
        """Decoder of the top-level objects ``route``, ``dns``, ``experimental`` and ``gateway``: (JSON value, path) ->
        options."""


def read(paths: list[str], directories: list[str] | None = None) -> list[Source]:
    """The files in merge order: sorted by name, "stdin" read from standard input. Raises ConfigError."""
    files = list(paths)
    for directory in directories or []:
        if not Path(directory).is_dir():
            raise ConfigError("not a directory", file=directory)
        files += [str(file) for file in Path(directory).glob("*.json")]
    if not files:
        raise ConfigError("no configuration file given")
    return [_read(file) for file in sorted(files)]


def _read(file: str) -> Source:
    try:
        if file == "stdin":
            text = sys.stdin.read(MAX_FILE + 1)
        else:
            with Path(file).open(encoding="utf-8-sig") as stream:
                text = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(error.strerror or str(error), file=file) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8: {error.reason} at byte {error.start}", file=file) from None
    if len(text) > MAX_FILE:
        raise ConfigError(f"larger than {MAX_FILE} bytes", file=file)
    value = parse(text, file)
    if not isinstance(value, dict):
        raise ConfigError("the configuration is one JSON object: { ... }", file=file, line=1)
    return Source(file, text, value)


def load(sources: list[Source], catalog: Catalog, directory: Path | None = None) -> Config:
    """Decode and check. Raises ConfigError with file and line."""
    try:
        return _Loader(merge(sources), sources, catalog, directory or Path.cwd()).load()
    except ConfigError as error:
        if not error.file:
            error.file, error.line = locate(sources, split_path(error.path))
        raise


class _Loader:
    def __init__(self, value: dict[str, Any], sources: list[Source], catalog: Catalog, directory: Path) -> None:
        self.value = value
        self.sources = sources
        self.catalog = catalog
        self.directory = directory

    def load(self) -> Config:
        value = self.value
        for key in value:
            if key not in KEYS:
                raise ConfigError(anchor.unknown_field(key, set(KEYS), "Options"), key)
        for key in ("ntp", "certificate", "endpoints", "services"):
            if value.get(key):
                raise ConfigError(anchor.unknown_field(key, set(), "Options"), key)
        dns, notes = modern_dns(value.get("dns", {}))
        servers = dns.get("servers", []) if isinstance(dns, dict) else []
        inbounds = self._tagged("inbound", value.get("inbounds", []), "inbounds")
        config = Config(
            log=decode(LogOptions, value.get("log", {}), "log", "LogOptions"),
            inbounds=inbounds,
            outbounds=self._tagged("outbound", value.get("outbounds", []), "outbounds"),
            dns_servers=self._tagged("dns", servers, "dns.servers"),
            route=self.catalog.section("route")(value.get("route", {}), "route"),
            dns=self.catalog.section("dns")(dns, "dns"),
            gateway=self.catalog.section("gateway")(value["gateway"], "gateway") if "gateway" in value else None,
            experimental=self.catalog.section("experimental")(value.get("experimental", {}), "experimental"),
            value=value,
            sources=self.sources,
            notes=(
                *notes,
                *(
                    f"{item.path}.{field}: {text}"
                    for item in inbounds
                    if hasattr(item.options, "notes")
                    for field, text in item.options.notes()
                ),
            ),
            directory=self.directory,
        )
        check_references(config)
        return config

    def _tagged(self, kind: str, items: Any, path: str) -> tuple[Tagged, ...]:
        if not isinstance(items, list):
            raise ConfigError("expected a list", path)
        found: list[Tagged] = []
        places: dict[str, str] = {}
        for index, item in enumerate(items):
            here = f"{path}[{index}]"
            entry = self._one(kind, item, here, str(index))
            if entry.tag in places:
                raise ConfigError(f'tag "{entry.tag}" is already taken by {places[entry.tag]}', f"{here}.tag")
            places[entry.tag] = here
            found.append(entry)
        return tuple(found)

    def _one(self, kind: str, item: Any, path: str, index: str) -> Tagged:
        if not isinstance(item, dict):
            raise ConfigError("expected an object", path)
        name = item.get("type")
        if not isinstance(name, str) or not name:
            raise ConfigError(f'missing "type"; one of {", ".join(self.catalog.names(kind))}', path)
        if name not in self.catalog.names(kind):
            raise ConfigError(anchor.unknown_type(kind, name, self.catalog.names(kind)), f"{path}.type")
        tag = item.get("tag", index)
        if not isinstance(tag, str):
            raise ConfigError("expected text", f"{path}.tag")
        rest = {key: inside for key, inside in item.items() if key not in ("type", "tag")}
        options = decode(self.catalog.options(kind, name), rest, path, anchor.types(kind).get(name, ""))
        return Tagged(tag or index, name, options, path, item)


def check_references(config: Config) -> None:
    """Tags that others name exist, and no outbound reaches itself through detours and groups."""
    outbounds = {item.tag: item for item in config.outbounds}
    edges: dict[str, list[tuple[str, str]]] = {}
    for item in config.outbounds:
        wanted = [(tag, f"{item.path}.outbounds[{i}]") for i, tag in enumerate(getattr(item.options, "outbounds", []))]
        if detour := getattr(item.options, "detour", ""):
            wanted.append((detour, f"{item.path}.detour"))
        if default := getattr(item.options, "default", ""):
            wanted.append((default, f"{item.path}.default"))
        edges[item.tag] = wanted
        for tag, path in wanted:
            if tag not in outbounds:
                raise ConfigError(f'no outbound has the tag "{tag}"; tags: {", ".join(outbounds)}', path)
    for tag in edges:
        _no_cycle(tag, edges, ())
    final = getattr(config.route, "final", "")
    if final and final not in outbounds:
        raise ConfigError(f'no outbound has the tag "{final}"; tags: {", ".join(outbounds)}', "route.final")
    for index, entry in enumerate(getattr(config.route, "rule_set", ())):
        if entry.download_detour and entry.download_detour not in outbounds:
            path = f"route.rule_set[{index}].download_detour"
            raise ConfigError(f'no outbound has the tag "{entry.download_detour}"', path)
    sets = {entry.tag for entry in getattr(config.route, "rule_set", ())}
    for index, item in enumerate(config.inbounds):
        for field, tag in getattr(item.options, "rule_sets", ()):
            if tag not in sets:
                raise ConfigError(f'no rule set has the tag "{tag}"', f"{item.path}.{field}")
        clash = getattr(item.options, "clash", lambda other: None)
        for other in config.inbounds[:index]:
            if item.type == other.type and (found := clash(other.options)):
                raise ConfigError(found[1], f"{item.path}.{found[0]}")
    servers = {item.tag for item in config.dns_servers}
    fakes = [item for item in config.dns_servers if item.type == "fakeip"]
    if fakes[1:]:
        raise ConfigError(f'there can be one fakeip server, and "{fakes[0].tag}" is it', f"{fakes[1].path}.type")
    if fakes and getattr(config.dns, "final", "") == fakes[0].tag:
        raise ConfigError(
            f'"{fakes[0].tag}" makes addresses up and cannot be the default: write another one into dns.final, and '
            "rules that lead to this one", fakes[0].path,
        )  # fmt: skip
    for item in config.dns_servers:
        detour = getattr(item.options, "detour", "")
        if detour and detour not in outbounds:
            raise ConfigError(f'no outbound has the tag "{detour}"', f"{item.path}.detour")
    for item in (*config.outbounds, *config.dns_servers):
        resolver = getattr(item.options, "domain_resolver", "")
        server = resolver if isinstance(resolver, str) else resolver.server
        if server and server not in servers:
            raise ConfigError(f'no DNS server has the tag "{server}"', f"{item.path}.domain_resolver")


def _no_cycle(tag: str, edges: dict[str, list[tuple[str, str]]], trail: tuple[str, ...]) -> None:
    for target, path in edges[tag]:
        if target == tag or target in trail:
            raise ConfigError(f"outbound cycle: {' -> '.join((*trail, tag, target))}", path)
        _no_cycle(target, edges, (*trail, tag))
