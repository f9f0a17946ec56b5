"""``client``: sniffed client program. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class Client(TextItem):
    __slots__ = ()
    key = "client"

    def match(self, subject: Subject) -> bool:
        return subject.client in self.set
