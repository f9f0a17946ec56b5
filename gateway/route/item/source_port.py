"""``source_port``: source port. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.portset import PortItem, listed

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourcePort(PortItem):
    __slots__ = ()
    key = "source_port"
    group = "source_port"

    @classmethod
    def parse(cls, value: Any) -> SourcePort:
        return cls(listed(value))

    def match(self, subject: Subject) -> bool:
        return self.holds(subject.source_port)
