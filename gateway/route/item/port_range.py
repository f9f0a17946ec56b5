"""``port_range``: ranges of destination ports. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.portset import PortItem, ranged

if TYPE_CHECKING:
    from gateway.route.match import Subject


class PortRange(PortItem):
    __slots__ = ()
    key = "port_range"
    group = "port"

    @classmethod
    def parse(cls, value: Any) -> PortRange:
        return cls(ranged(value))

    def match(self, subject: Subject) -> bool:
        return self.holds(subject.port)
