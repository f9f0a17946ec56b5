"""``ip_is_private``: the destination is not a public address. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from gateway.route.item.base import Group, Item, truth
from gateway.route.item.ipset import PRIVATE

if TYPE_CHECKING:
    from gateway.route.match import Subject


class IPIsPrivate(Item):
    __slots__ = ()
    key = "ip_is_private"
    group: ClassVar[Group] = "destination"
    set = PRIVATE

    @classmethod
    def parse(cls, value: Any) -> IPIsPrivate:
        return cls(truth(value))

    def match(self, subject: Subject) -> bool:
        if subject.destination is not None:
            return subject.destination in self.set
        return any(point in self.set for point in subject.addresses)
