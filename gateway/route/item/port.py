"""``port``: destination port. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.portset import PortItem, listed

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Port(PortItem):
    __slots__ = ()
    key = "port"
    group = "port"

    @classmethod
    def parse(cls, value: Any) -> Port:
        return cls(listed(value))

    def match(self, subject: Subject) -> bool:
        return self.holds(subject.port)
