"""``ip_cidr``: the destination's address, or one that its name resolved to. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, texts
from gateway.route.item.ipset import IPSet

if TYPE_CHECKING:
    from gateway.route.match import Subject


class IPCIDR(Item):
    """Inside a rule set whose rule says ``rule_set_ip_cidr_match_source`` it asks the source instead."""

    __slots__ = ("set",)
    key = "ip_cidr"
    group = "destination"

    def __init__(self, addresses: IPSet) -> None:
        super().__init__(addresses)
        self.set = addresses

    @classmethod
    def parse(cls, value: Any) -> IPCIDR:
        return cls(IPSet.of(texts(value)))

    def match(self, subject: Subject) -> bool:
        if subject.match_source:
            return subject.source is not None and subject.source in self.set
        if subject.destination is not None:
            return subject.destination in self.set
        if subject.addresses:
            return any(point in self.set for point in subject.addresses)
        return subject.accept_empty

    def __str__(self) -> str:
        return f"{self.key}=({len(self.set)} ranges)"
