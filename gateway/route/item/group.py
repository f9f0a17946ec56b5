"""``group``: name of a group of the operating system that the socket's owner is in, as primary or supplementary group.
Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Group(TextItem):
    __slots__ = ()
    key = "group"

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and not self.set.isdisjoint(process.groups)
