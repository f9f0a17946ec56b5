"""``process_path``: path of the executable. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class ProcessPath(TextItem):
    __slots__ = ()
    key = "process_path"

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and process.path in self.set
