"""``source_hostname`` (sing-box 1.14): name in the DHCP lease of the device that the flow comes from. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import TextItem, texts

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourceHostname(TextItem):
    """Compared without regard to case (RFC 4343)."""

    __slots__ = ()
    key = "source_hostname"

    @classmethod
    def parse(cls, value: Any) -> SourceHostname:
        return cls(frozenset(text.lower() for text in texts(value)))

    def match(self, subject: Subject) -> bool:
        return subject.device is not None and subject.device.hostname in self.set
