"""What sing-box 1.12.12's configuration language has, by name: to tell "not built yet" from "unknown".

``anchor.json`` lists every type and every option object's fields.
"""

from __future__ import annotations

import json
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

VERSION = "1.12.12"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files("gateway.config").joinpath("anchor.json").read_text())
    return table


def types(kind: str) -> dict[str, str]:
    """Type name to option object of ``kind``: inbound, outbound, endpoint, service, dns."""
    return {
        name.partition("/")[2]: reference
        for name, reference in _table()["types"].items()
        if name.partition("/")[0] == kind
    }


def fields(name: str) -> frozenset[str]:
    """Fields of the option object ``name``, those of its variants included; empty for an unknown object."""
    return frozenset(_table()["objects"].get(name, {}))


def inner(name: str, field: str) -> str:
    """The option object that ``field`` of ``name`` holds; "" where it holds none."""
    found: str = _table()["objects"].get(name, {}).get(field, "")
    return found


def unknown_field(field: str, known: frozenset[str] | set[str] | list[str], object_name: str = "") -> str:
    """The message for a field that an object of ours does not take: not built yet, misspelt, or unknown."""
    if field in fields(object_name):
        return f'"{field}" exists in sing-box {VERSION} but is not built yet; remove it'
    return f'unknown field "{field}"{_suggestion(field, sorted(set(known) | fields(object_name)))}'


def unknown_type(kind: str, name: str, built: list[str]) -> str:
    """The message for a type that the catalog lacks."""
    if name in types(kind):
        return f'{kind} type "{name}" exists in sing-box {VERSION} but is not built yet; built: {", ".join(built)}'
    return f'unknown {kind} type "{name}"{_suggestion(name, sorted({*built, *types(kind)}))}'


def _suggestion(word: str, among: list[str]) -> str:
    close = get_close_matches(word, among, 1, 0.7)
    return f'; did you mean "{close[0]}"?' if close else f"; allowed: {', '.join(among)}" if len(among) < 12 else ""
