"""``network``: tcp or udp. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import TextItem, texts

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Network(TextItem):
    __slots__ = ()
    key = "network"

    @classmethod
    def parse(cls, value: Any) -> Network:
        values = frozenset(texts(value))
        if not values <= {"tcp", "udp"}:
            raise ValueError(f'"{min(values - {"tcp", "udp"})}" is not a network; write "tcp" or "udp"')
        return cls(values)

    def match(self, subject: Subject) -> bool:
        return subject.network in self.set
