"""``source_ip_is_private``: the source is not a public address. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, truth
from gateway.route.item.ipset import PRIVATE

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourceIPIsPrivate(Item):
    __slots__ = ()
    key = "source_ip_is_private"
    group = "source"
    set = PRIVATE

    @classmethod
    def parse(cls, value: Any) -> SourceIPIsPrivate:
        return cls(truth(value))

    def match(self, subject: Subject) -> bool:
        return subject.source is not None and subject.source in PRIVATE
