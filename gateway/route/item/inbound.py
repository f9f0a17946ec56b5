"""``inbound``: tag of the inbound. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Inbound(TextItem):
    __slots__ = ()
    key = "inbound"

    def match(self, subject: Subject) -> bool:
        return subject.inbound in self.set
