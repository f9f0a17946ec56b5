"""``source_ip_is_private``: the source is not a public address. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.ip_is_private import IPIsPrivate

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourceIPIsPrivate(IPIsPrivate):
    __slots__ = ()
    key = "source_ip_is_private"
    group = "source"

    def match(self, subject: Subject) -> bool:
        return subject.source is not None and subject.source in self.set
