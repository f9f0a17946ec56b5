"""Fake addresses: each stands for the name that it was given out for, until the range comes round again.

The same pair is told of a name as long as it is not taken by another; the range is walked in order, from its third
address on and round to that again, so the oldest goes first (the order is sing-box's, its start included). With a store
what was given out is written before anybody is told of it: after SIGKILL the same names have the same addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address

import msgspec

from gateway.core.address import IP
from gateway.core.contracts import IPv4Address, IPv6Address, Store

MOST = 1 << 17
"""Names of one family, all that the usual range (198.18.0.0/15) has addresses for; the oldest is forgotten."""
KINDS = {4: "fakeip4", 6: "fakeip6"}
"""Kinds of the store's entries: address to name."""
WALK, PLACE = "fakeip", "walk"

Network = IPv4Network | IPv6Network
Entry = tuple[str, str, bytes | None]

log = logging.getLogger("gateway.dns")


class Walk(msgspec.Struct):
    """Where the walk through a range is."""

    range: str
    last: str


class Range:
    """One family. Addresses are numbers here."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.version = network.version
        base = int(network.network_address)
        self._first, self._end = base + 2, base + network.num_addresses
        self.last = base + 2
        """Given out last."""
        self._names: dict[int, str] = {}
        """By address, the oldest first."""
        self._addresses: dict[str, int] = {}

    def ip(self, number: int) -> IP:
        return IPv4Address(number) if self.version == 4 else IPv6Address(number)

    def name(self, ip: IP) -> str:
        return self._names.get(int(ip), "")

    def get(self, name: str) -> IP | None:
        number = self._addresses.get(name)
        return None if number is None else self.ip(number)

    def take(self, name: str) -> Iterator[int]:
        """Give ``name`` the next address. The addresses that stand for something else now, that one last."""
        number = self.last + 1 if self.last + 1 < self._end else self._first
        self.last = number
        for old in self.put(number, name):
            if old != number:
                yield old
        yield number

    def put(self, number: int, name: str) -> list[int]:
        """Addresses that were let go for it."""
        gone = [number] if number in self._names else []
        if name in self._addresses:
            gone.append(self._addresses[name])
        if not gone and len(self._names) >= MOST:
            gone.append(next(iter(self._names)))
        for old in gone:
            self._addresses.pop(self._names.pop(old, ""), None)
        self._names[number] = name
        self._addresses[name] = number
        return gone

    def __contains__(self, ip: IP) -> bool:
        return ip.version == self.version and ip in self.network

    def __len__(self) -> int:
        return len(self._names)


class FakeAddresses:
    """See ``core.contracts.Fakes``. ``networks``: at most one of each family; ``store`` None: nothing outlives this."""

    def __init__(self, networks: tuple[Network, ...], store: Store | None = None) -> None:
        self.networks = networks
        self.ranges: Mapping[int, Range] = {network.version: Range(network) for network in networks}
        self.store = store
        if store is not None:
            for version, some in self.ranges.items():
                self._load(store, version, some)

    def _load(self, store: Store, version: int, some: Range) -> None:
        walk = None
        with suppress(msgspec.MsgspecError):
            walk = msgspec.json.decode(store.get(WALK, f"{PLACE}{version}") or b"", type=Walk)
        rows = store.items(KINDS[version])
        if walk is None or walk.range != str(some.network):
            # Other addresses: what they stood for says nothing of these.
            store.change([(KINDS[version], key, None) for key, _ in rows])
            return
        with suppress(ValueError):
            some.last = int(ip_address(walk.last))
            found = [(int(ip_address(key)), name.decode()) for key, name in rows]
            # In the order in which they were given out: behind the last one stand the oldest.
            for number, name in sorted(found, key=lambda one: (one[0] <= some.last, one[0])):
                some.put(number, name)

    def __contains__(self, ip: IP) -> bool:
        some = self.ranges.get(ip.version)
        return some is not None and ip in some

    def name(self, ip: IP) -> str:
        """What ``ip`` stands for, "" for nothing."""
        some = self.ranges.get(ip.version)
        return "" if some is None else some.name(ip)

    def give(self, name: str, version: int) -> tuple[IP | None, list[Entry]]:
        """The address of ``name``, None where there is no range of that family, and what is to be stored before it is
        told."""
        some = self.ranges.get(version)
        if some is None:
            return None, []
        known = some.get(name)
        if known is not None:
            return known, []
        *gone, number = some.take(name)
        ip = some.ip(number)
        walk = msgspec.json.encode(Walk(str(some.network), str(ip)))
        entries: list[Entry] = [(KINDS[version], str(some.ip(old)), None) for old in gone]
        return ip, [*entries, (KINDS[version], str(ip), name.encode()), (WALK, f"{PLACE}{version}", walk)]
