"""What ``gateway flows`` lists: the flows of both planes, those of the kernel as conntrack knows them.

At most ``LIMIT`` flows are kept, first ones of the order asked for; the others are counted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from msgspec import Struct

from gateway.core.address import IP, Address
from gateway.core.contracts import Devices, Running
from gateway.core.errors import GatewayError
from gateway.core.flow import Network, Process
from gateway.kernel.conntrack import Counted

LIMIT = 10_000
BATCH = 256
"""Flows looked at in one go: some milliseconds in which nothing else runs."""

DIRECT = ("direct",)
NETWORKS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp6"}

Names = Callable[[IP, IP], tuple[str, ...]]
"""As ``core.contracts.Resolver.learned``."""
Owner = Callable[[Network, Address, Address], Process | None]
"""As ``core.contracts.Owners.find``."""


class Row(Struct, frozen=True, gc=False):
    """One flow; None is what its plane does not know."""

    plane: Literal["kernel", "userspace"]
    network: str
    source: str
    destination: str
    name: str | None = None
    inbound: str | None = None
    chain: tuple[str, ...] = ()
    rule: int | None = None
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

    def holds(self, word: str) -> bool:
        texts = (
            self.plane, self.network, self.source, self.destination, self.name, self.inbound, *self.chain, self.device,
            self.hostname, self.process, self.user,
        )  # fmt: skip
        return any(text is not None and word in text for text in texts)


def _falling(number: float | None) -> float:
    """A key that puts great numbers first and unknown ones last."""
    return 1 if number is None else -number


def _natural(text: str) -> list[str | int]:
    """A key that puts 10.0.0.9 before 10.0.0.10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


KEYS: dict[str, Callable[[Row], Any]] = {
    "bytes": lambda row: _falling(None if row.up is None or row.down is None else row.up + row.down),
    "up": lambda row: _falling(row.up),
    "down": lambda row: _falling(row.down),
    "age": lambda row: _falling(row.age),
    "source": lambda row: _natural(row.source),
    "destination": lambda row: _natural(row.destination),
    "outbound": lambda row: row.chain,
    "process": lambda row: (row.process is None, row.process or "", row.pid or 0),
}


class Chosen:
    """The first ``limit`` rows by ``sort`` of those that hold all ``words``; never twice as many at once."""

    def __init__(self, sort: str, words: Sequence[str], limit: int = LIMIT) -> None:
        self._key = KEYS[sort]
        self._words = words
        self._limit = limit
        self._rows: list[tuple[Any, Row]] = []
        self.left_out = 0

    def add(self, row: Row) -> None:
        if all(row.holds(word) for word in self._words):
            self._rows.append((self._key(row), row))
            if len(self._rows) >= 2 * self._limit:
                self._cut()

    def _cut(self) -> None:
        self._rows.sort(key=itemgetter(0))
        self.left_out += max(0, len(self._rows) - self._limit)
        del self._rows[self._limit :]

    def rows(self) -> list[Row]:
        self._cut()
        return [row for _, row in self._rows]


def userspace_row(running: Running, devices: Devices, now: float, owner: Owner) -> Row | None:
    """None for a session of which the kernel carries all, or that is only remembered."""
    flow, destinations = running.flow, running.destinations
    if not destinations:
        return None
    # A UDP session's is known to each of its destinations' routes alone.
    process = flow.process or owner(flow.network, flow.source, flow.local or destinations[0])
    return Row(
        "userspace", flow.network, str(flow.source), str(destinations[0]), running.name or None, flow.inbound,
        running.chain, running.rule, running.up, running.down, age=round(now - running.since, 1),
        destinations=len(destinations), **_owned(process), **_from(devices, flow.source.ip),
    )  # fmt: skip


def kernel_row(found: Counted, names: Names, devices: Devices, process: Process | None = None) -> Row:
    entry, up, down = found.entry, found.up, found.down
    network = NETWORKS.get(entry.protocol, str(entry.protocol))
    source, destination = entry.source.ip, entry.destination.ip
    learned = names(destination, source) if source is not None and destination is not None else ()
    return Row(
        "kernel", network, _end(entry.source, network), _end(entry.destination, network),
        learned[0] if learned else None, chain=DIRECT,
        up=up and up.bytes, down=down and down.bytes,
        packets_up=up and up.packets, packets_down=down and down.packets, timeout=found.timeout, **_owned(process),
        **_from(devices, source),
    )  # fmt: skip


def _from(devices: Devices, source: IP | None) -> dict[str, Any]:
    device = devices.find(source) if source is not None else None
    return {} if device is None else {"device": device.mac or None, "hostname": device.hostname or None}


def _owned(process: Process | None) -> dict[str, Any]:
    if process is None:
        return {}
    user = process.user or (str(process.uid) if process.uid >= 0 else None)
    return {"process": process.path or None, "pid": process.pid or None, "user": user}


def _owner(found: Counted, owner: Owner) -> Process | None:
    network = NETWORKS.get(found.entry.protocol)
    if network == "tcp" or network == "udp":
        return owner("tcp" if network == "tcp" else "udp", found.entry.source, found.entry.destination)
    return None


def _end(address: Address, network: str) -> str:
    return str(address) if network in ("tcp", "udp") else str(address.host)


async def listing(
    running: Sequence[Running], tracked: Generator[Counted, None, None] | None, names: Names, devices: Devices,
    now: float, request: dict[str, Any], owner: Owner = lambda network, source, destination: None,
) -> dict[str, Any]:  # fmt: skip
    """The answer to ``request`` (``sort``, ``filter``). ``tracked`` is read in a thread; ``names``, ``devices`` and
    ``owner`` are asked in the loop, to which they belong. Raises GatewayError."""
    sort, words = request.get("sort", "bytes"), request.get("filter", [])
    if sort not in KEYS:
        raise GatewayError(f'no sort key "{sort}"; keys: {", ".join(KEYS)}')
    chosen = Chosen(sort, [str(word) for word in words])
    for start in range(0, len(running), BATCH):
        for one in running[start : start + BATCH]:
            if (row := userspace_row(one, devices, now, owner)) is not None:
                chosen.add(row)
        await asyncio.sleep(0)
    if tracked is not None:
        with closing(tracked):
            while batch := await asyncio.to_thread(lambda: list(islice(tracked, BATCH))):
                for found in batch:
                    chosen.add(kernel_row(found, names, devices, _owner(found, owner)))
    return {"flows": chosen.rows(), "left_out": chosen.left_out}
