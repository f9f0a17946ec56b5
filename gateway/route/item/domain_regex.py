"""``domain_regex``: an RE2 expression somewhere in the name. Pure."""

from __future__ import annotations

from typing import Any

from gateway.route.item.base import texts
from gateway.route.item.names import NameItem
from gateway.route.item.pattern import Patterns


class DomainRegex(NameItem):
    __slots__ = ("patterns",)
    key = "domain_regex"

    def __init__(self, expressions: tuple[str, ...]) -> None:
        super().__init__(expressions)
        self.patterns = Patterns(expressions)

    @classmethod
    def parse(cls, value: Any) -> DomainRegex:
        return cls(texts(value))

    def holds(self, name: str) -> bool:
        return self.patterns.search(name)
