"""The domain items share this: they ask the lower-cased name, and never match a flow without one. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import Item

if TYPE_CHECKING:
    from gateway.route.match import Subject


class NameItem(Item):
    __slots__ = ()
    group = "destination"

    def holds(self, name: str) -> bool:
        """Whether the lower-case, non-empty ``name`` matches."""
        raise NotImplementedError

    def match(self, subject: Subject) -> bool:
        name = subject.name
        return bool(name) and self.holds(name)
