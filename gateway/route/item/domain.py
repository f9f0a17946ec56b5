"""``domain``: the whole name. Pure."""

from __future__ import annotations

from typing import Any

from gateway.route.item.base import texts
from gateway.route.item.names import NameItem


class Domain(NameItem):
    __slots__ = ("set",)
    key = "domain"

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__(names)
        self.set = names

    @classmethod
    def parse(cls, value: Any) -> Domain:
        return cls(frozenset(texts(value)))

    def holds(self, name: str) -> bool:
        return name in self.set
