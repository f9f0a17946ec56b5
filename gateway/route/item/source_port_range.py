"""``source_port_range``: ranges of source ports. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.portset import PortItem, ranged

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourcePortRange(PortItem):
    __slots__ = ()
    key = "source_port_range"
    group = "source_port"

    @classmethod
    def parse(cls, value: Any) -> SourcePortRange:
        return cls(ranged(value))

    def match(self, subject: Subject) -> bool:
        return self.holds(subject.source_port)
