"""Rule sets from the configuration, from local files or from what was downloaded, to rules.

Reads whole files of at most ``LARGEST`` bytes; a file that is missing, cut or corrupt is one ConfigError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gateway.config.text import parse
from gateway.core.errors import ConfigError, PeerError
from gateway.route.match import Rule
from gateway.route.options import RouteConfig, RuleSetOptions, parse_headless
from gateway.route.ruleset import binary

LARGEST = 64 << 20
"""Bytes of a file."""
NEWEST_SOURCE = 3


Copies = Callable[[RuleSetOptions], tuple[Rule, ...]]
"""The rules of the copy that is here of a remote rule set; none where there is no copy. Never raises."""


def no_copies(options: RuleSetOptions) -> tuple[Rule, ...]:
    """Nothing was ever downloaded."""
    return ()


def load_all(
    route: RouteConfig, folder: Path, copies: Copies = no_copies, path: str = "route.rule_set"
) -> dict[str, tuple[Rule, ...]]:
    """Tag to rules of every rule set. Relative paths start at ``folder``. Raises ConfigError."""
    return {entry.tag: load(entry, folder, f"{path}[{index}]", copies) for index, entry in enumerate(route.rule_set)}


def load(options: RuleSetOptions, folder: Path, path: str, copies: Copies = no_copies) -> tuple[Rule, ...]:
    """The rules of one rule set. Raises ConfigError."""
    if options.type == "remote":
        return copies(options)
    if options.type != "local":
        return _rules(options.rules, f"{path}.rules")
    file = folder / options.path
    try:
        if file.stat().st_size > LARGEST:
            raise ConfigError(f"rule set {options.path} is over {LARGEST >> 20} MiB", f"{path}.path")
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"rule set {options.path}: {error.strerror}", f"{path}.path") from None
    return parsed(data, options.form, options.path, f"{path}.path")


def parsed(data: bytes, form: Literal["source", "binary"], name: str, path: str = "") -> tuple[Rule, ...]:
    """The rules in the content of a file; ``name`` is what it is called in an error. Raises ConfigError."""
    if form == "source":
        return source(data, name, path)
    try:
        return binary.read(data)
    except PeerError as error:
        raise ConfigError(f"rule set {name}: {error}", path) from None


def source(data: bytes, name: str, path: str) -> tuple[Rule, ...]:
    """A rule set in source form (JSON, versions 1 to 3). Raises ConfigError."""
    try:
        value = parse(data.decode(), name)
    except UnicodeDecodeError:
        raise ConfigError(f"rule set {name}: not UTF-8 text", path) from None
    except ConfigError as error:
        raise ConfigError(f"rule set {error}", path) from None
    if not isinstance(value, dict) or set(value) - {"version", "rules"} or not isinstance(value.get("rules"), list):
        raise ConfigError(f'rule set {name}: expected {{"version": 1, "rules": [...]}}', path)
    version = value.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= NEWEST_SOURCE:
        raise ConfigError(f"rule set {name}: version {version!r} is not supported; 1 to {NEWEST_SOURCE} are", path)
    try:
        return _rules(value["rules"], "rules")
    except ConfigError as error:
        raise ConfigError(f"rule set {name}: {error}", path) from None


def _rules(raw: list[Any], path: str) -> tuple[Rule, ...]:
    return tuple(parse_headless(rule, f"{path}[{index}]") for index, rule in enumerate(raw))
