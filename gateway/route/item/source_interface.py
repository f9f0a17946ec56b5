"""``source_interface``: name of the interface that the flow comes in through. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import TextItem, texts

if TYPE_CHECKING:
    from gateway.route.match import Subject


class SourceInterface(TextItem):
    __slots__ = ()
    key = "source_interface"

    @classmethod
    def parse(cls, value: Any) -> SourceInterface:
        names = texts(value)
        for name in names:
            # IFNAMSIZ of linux/if.h is 16 with the closing zero; a star would be a pattern to nftables.
            if len(name.encode()) > 15 or any(letter.isspace() or letter in '/:"\\*' for letter in name):
                raise ValueError(f'"{name}" is not an interface name')
        return cls(frozenset(names))

    def match(self, subject: Subject) -> bool:
        return subject.device is not None and subject.device.interface in self.set
