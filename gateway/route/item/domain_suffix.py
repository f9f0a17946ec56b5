"""``domain_suffix``: ``x.y`` holds x.y and every name below it, ``.x.y`` only the names below it. Pure."""

from __future__ import annotations

from typing import Any

from gateway.route.item.base import texts
from gateway.route.item.names import NameItem


class DomainSuffix(NameItem):
    """One set lookup a label, whatever the number of suffixes."""

    __slots__ = ("set",)
    key = "domain_suffix"

    def __init__(self, suffixes: frozenset[str]) -> None:
        super().__init__(suffixes)
        self.set = suffixes

    @classmethod
    def parse(cls, value: Any) -> DomainSuffix:
        return cls(frozenset(texts(value)))

    def holds(self, name: str) -> bool:
        suffixes = self.set
        if name in suffixes:
            return True
        at = name.find(".")
        while at >= 0:
            if name[at + 1 :] in suffixes or (at > 0 and name[at:] in suffixes):
                return True
            at = name.find(".", at + 1)
        return False
