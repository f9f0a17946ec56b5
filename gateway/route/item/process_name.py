"""``process_name``: last component of the executable's path. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class ProcessName(TextItem):
    __slots__ = ()
    key = "process_name"

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and process.name in self.set
