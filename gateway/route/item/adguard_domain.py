"""``adguard_domain``: patterns of an AdGuard list; only binary rule sets hold them. Pure.

A key is a name with ``*`` for any run of characters; ``\\n`` in front: it and every name below it; ``\\r`` in front:
any name that ends so; ``\\b`` behind: anything may follow.
"""

from __future__ import annotations

import re

from gateway.route.item.domain_suffix import DomainSuffix
from gateway.route.item.names import NameItem
from gateway.route.item.pattern import Patterns

CHUNK = 500
"""Keys in one expression, to stay below RE2's memory bound."""


class AdGuardDomain(NameItem):
    __slots__ = ("patterns", "plain")
    key = "adguard_domain"

    def __init__(self, keys: frozenset[str]) -> None:
        super().__init__(keys)
        plain = {key[1:] for key in keys if key[:1] == "\n" and "*" not in key and "\b" not in key}
        self.plain = DomainSuffix(frozenset(plain))
        rest = sorted(_expression(key) for key in keys if key[:1] != "\n" or key[1:] not in plain)
        self.patterns = Patterns("|".join(rest[at : at + CHUNK]) for at in range(0, len(rest), CHUNK))

    def holds(self, name: str) -> bool:
        name = name.removesuffix(".")
        return self.plain.holds(name) or self.patterns.search(name)


def _expression(key: str) -> str:
    begin = {"\n": r"^(?:.*\.)?", "\r": "^.*"}.get(key[:1], "^")
    body = key.lstrip("\r\n")
    end = ".*$" if body.endswith("\b") else "$"
    return begin + ".*".join(re.escape(part) for part in body.removesuffix("\b").split("*")) + end
