"""Rule sets from the configuration or from local files, to rules.

Reads whole files of at most ``LARGEST`` bytes; a file that is missing, cut or corrupt is one ConfigError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.config.text import parse
from gateway.core.errors import ConfigError, PeerError
from gateway.route.match import Rule
from gateway.route.options import RouteConfig, RuleSetOptions, parse_headless
from gateway.route.ruleset import binary

LARGEST = 64 << 20
NEWEST_SOURCE = 3


def load_all(route: RouteConfig, folder: Path, path: str = "route.rule_set") -> dict[str, tuple[Rule, ...]]:
    """Tag to rules of every rule set. Relative paths start at ``folder``. Raises ConfigError."""
    return {entry.tag: load(entry, folder, f"{path}[{index}]") for index, entry in enumerate(route.rule_set)}


def load(options: RuleSetOptions, folder: Path, path: str) -> tuple[Rule, ...]:
    """The rules of one rule set. Raises ConfigError."""
    if options.type != "local":
        return _rules(options.rules, f"{path}.rules")
    file = folder / options.path
    try:
        if file.stat().st_size > LARGEST:
            raise ConfigError(f"rule set {options.path} is over {LARGEST >> 20} MiB", f"{path}.path")
        data = file.read_bytes()
    except OSError as error:
        raise ConfigError(f"rule set {options.path}: {error.strerror}", f"{path}.path") from None
    if (options.format or ("binary" if options.path.endswith(".srs") else "source")) == "source":
        return source(data, options.path, f"{path}.path")
    try:
        return binary.read(data)
    except PeerError as error:
        raise ConfigError(f"rule set {options.path}: {error}", f"{path}.path") from None


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
