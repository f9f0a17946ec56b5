"""``source_mac_address`` (sing-box 1.14): hardware address of the device that the flow comes from. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.route.item.base import TextItem, texts

if TYPE_CHECKING:
    from gateway.route.match import Subject

MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class SourceMACAddress(TextItem):
    __slots__ = ()
    key = "source_mac_address"

    @classmethod
    def parse(cls, value: Any) -> SourceMACAddress:
        found = {text: text.lower().replace("-", ":") for text in texts(value)}
        for text, mac in found.items():
            if not MAC.fullmatch(mac):
                raise ValueError(f'"{text}" is not a hardware address; write "00:53:00:12:34:56"')
        return cls(frozenset(found.values()))

    def match(self, subject: Subject) -> bool:
        return subject.device is not None and subject.device.mac in self.set
