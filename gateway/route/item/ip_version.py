"""``ip_version``: 4 or 6, of the destination (of a DNS question: A or AAAA). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item

if TYPE_CHECKING:
    from gateway.route.match import Subject


class IPVersion(Item):
    __slots__ = ()
    key = "ip_version"

    @classmethod
    def parse(cls, value: Any) -> IPVersion:
        if isinstance(value, bool) or value not in (4, 6):
            raise ValueError(f"{value!r} is not an IP version; write 4 or 6")
        return cls(int(value))

    def match(self, subject: Subject) -> bool:
        return subject.ip_version == self.value
