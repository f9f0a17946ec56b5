"""``protocol``: sniffed protocol. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Protocol(TextItem):
    __slots__ = ()
    key = "protocol"

    def match(self, subject: Subject) -> bool:
        return subject.protocol in self.set
