"""``domain_keyword``: a part of the name. Pure."""

from __future__ import annotations

from typing import Any

from gateway.route.item.base import texts
from gateway.route.item.names import NameItem


class DomainKeyword(NameItem):
    __slots__ = ("words",)
    key = "domain_keyword"

    def __init__(self, words: frozenset[str]) -> None:
        super().__init__(words)
        self.words = tuple(sorted(words))

    @classmethod
    def parse(cls, value: Any) -> DomainKeyword:
        return cls(frozenset(texts(value)))

    def holds(self, name: str) -> bool:
        return any(word in name for word in self.words)
