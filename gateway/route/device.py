"""Device items as what a forwarded packet shows: the interface it came in through, and its hardware address. Pure.

A host name stands for the addresses that hold it in the leases now.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from gateway.core.flow import Device
from gateway.route.item.base import Item
from gateway.route.match import Subject

MOST_ROWS = 16384
"""Pairs of interface and hardware address that are told apart; rules that ask for more are judged in userspace."""


class DeviceAtoms:
    """``items``: atom number to item. ``hostnames``: hardware address to the name in its lease."""

    def __init__(self, items: Mapping[int, Item], hostnames: Mapping[str, str]) -> None:
        self.items = items
        self._hostnames = hostnames
        interfaces, macs, names = (
            sorted({value for item in items.values() if item.key == key for value in cast(Any, item).set})
            for key in ("source_interface", "source_mac_address", "source_hostname")
        )
        self.interfaces = interfaces
        self.macs = sorted({*macs, *(mac for mac, name in hostnames.items() if name in names)})

    @property
    def countable(self) -> bool:
        return (len(self.interfaces) + 1) * (len(self.macs) + 1) <= MOST_ROWS

    def known(self, interface: str = "", mac: str = "") -> dict[int, bool]:
        """Answers of the atoms; "" is an interface, an address that no item names."""
        subject = Subject()
        subject.device = Device(mac, interface, self._hostnames.get(mac, ""))
        return {atom: item.match(subject) for atom, item in self.items.items()}

    def vectors(self) -> list[tuple[int, int]]:
        """For ``feasible.Vectors``: each answer that some device gives."""
        if not self.countable:
            return [(0, sum(1 << atom for atom in self.items))]
        answers = {
            sum(1 << atom for atom, true in self.known(interface, mac).items() if true)
            for interface in ("", *self.interfaces)
            for mac in ("", *self.macs)
        }
        return [(mask, 0) for mask in answers]
