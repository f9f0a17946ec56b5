"""What flows, and what has passed since the start, in both planes: the data of ``contracts.Accounts``. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from gateway.core.address import IP

By = Literal["class", "device", "process", "outbound"]
MOST = 4096
"""Keys that a Tally holds."""
REST = "(others)"
"""Outbound, source and process of what a Tally had no room for."""


class Row(Struct, frozen=True, gc=False):
    """One flow that runs; None is what its plane does not know. Bytes of the kernel are its packets' own, from the IP
    header on; those of userspace are payload."""

    plane: Literal["kernel", "userspace"]
    network: str
    source: str
    destination: str
    name: str | None = None
    inbound: str | None = None
    chain: tuple[str, ...] = ()
    rule: int | None = None
    """Index in ``route.rules``, -1 for ``final``; of a flow of the kernel only where its packets leave no doubt."""
    up: int | None = None
    down: int | None = None
    packets_up: int | None = None
    packets_down: int | None = None
    age: float | None = None
    timeout: int | None = None
    destinations: int = 1
    """Of a UDP session, which may speak to many; ``destination`` is the first."""
    device: str | None = None
    """Hardware address of the LAN's device that it comes from."""
    hostname: str | None = None
    """Of that device, by its lease."""
    process: str | None = None
    """Path of the executable, of a flow of this host; so the next two."""
    pid: int | None = None
    user: str | None = None
    """Its name, or its number where it has none."""
    rate_up: float | None = None
    """Bytes a second between two looks; None where there was one."""
    rate_down: float | None = None

    def holds(self, word: str) -> bool:
        texts = (
            self.plane, self.network, self.source, self.destination, self.name, self.inbound, *self.chain, self.device,
            self.hostname, self.process, self.user,
        )  # fmt: skip
        return any(text is not None and word in text for text in texts)


class Listing(Struct, frozen=True):
    """The first flows of an order; ``left_out`` more were there."""

    flows: list[Row]
    left_out: int


class Total(NamedTuple):
    """What passed under one name. ``flows``: those that run included. ``up`` and ``down`` are parts of ``bytes``, None
    where they are not told apart. ``packets``: of the kernel alone."""

    name: str
    flows: int = 0
    bytes: int = 0
    packets: int = 0
    up: int | None = None
    down: int | None = None


class Key(NamedTuple):
    """What is counted together. ``process``: path, "" for a flow of another host and for an unknown one."""

    outbound: str
    source: IP | str
    process: str = ""


class Sums:
    """Of one key."""

    __slots__ = ("down", "flows", "packets", "up")

    def __init__(self) -> None:
        self.flows = self.up = self.down = self.packets = 0

    def add(self, flows: int, up: int, down: int, packets: int) -> None:
        self.flows += flows
        self.up += up
        self.down += down
        self.packets += packets


class Tally:
    """Sums by key. At the bound the key that nothing was added to for longest goes into ``REST``."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._sums: dict[Key, Sums] = {}
        self._rest = Sums()

    def add(self, key: Key, flows: int, up: int, down: int, packets: int = 0) -> None:
        sums = self._sums.pop(key, None)
        if sums is None:
            if len(self._sums) >= self._most:
                old = self._sums.pop(next(iter(self._sums)))
                self._rest.add(old.flows, old.up, old.down, old.packets)
            sums = Sums()
        self._sums[key] = sums
        sums.add(flows, up, down, packets)

    def copy(self) -> Tally:
        found = Tally(self._most)
        for key, sums in self:
            found.add(key, sums.flows, sums.up, sums.down, sums.packets)
        return found

    def __iter__(self) -> Iterator[tuple[Key, Sums]]:
        yield from self._sums.items()
        if self._rest.flows:
            yield Key(REST, REST, REST), self._rest
