"""``user``: name of the operating system's user who owns the socket; any of its names where it has several. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class User(TextItem):
    __slots__ = ()
    key = "user"

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and (process.user in self.set or not self.set.isdisjoint(process.aliases))
