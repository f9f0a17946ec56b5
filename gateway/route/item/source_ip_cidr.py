"""``source_ip_cidr``: the source's address. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, texts
from gateway.route.item.ipset import IPSet

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourceIPCIDR(Item):
    __slots__ = ("set",)
    key = "source_ip_cidr"
    group = "source"

    def __init__(self, addresses: IPSet) -> None:
        super().__init__(addresses)
        self.set = addresses

    @classmethod
    def parse(cls, value: Any) -> SourceIPCIDR:
        return cls(IPSet.of(texts(value)))

    def match(self, subject: Subject) -> bool:
        return subject.source is not None and subject.source in self.set

    def __str__(self) -> str:
        return f"{self.key}=({len(self.set)} ranges)"
