"""The flows of both planes as rows, those of the kernel as conntrack knows them.

At most ``LIMIT`` flows are kept, first ones of the order asked for; the others are counted.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any, NamedTuple

from msgspec import structs

from gateway.core.account import Listing, Row
from gateway.core.address import IP, Address
from gateway.core.contracts import Devices, Running
from gateway.core.errors import GatewayError
from gateway.core.flow import Network, Process
from gateway.kernel.conntrack import Counted

LIMIT = 10_000
SURPLUS = 1000
"""Rows beyond the bound at which the last ones go."""
BATCH = 256
"""Flows looked at in one go: some milliseconds in which nothing else runs."""
TRACED = 1000
"""Flows of which the rule is looked for: it takes as long as deciding them."""
STEP = 32
"""Rows made in one go."""

DIRECT = ("direct",)
NETWORKS = {6: "tcp", 17: "udp", 1: "icmp", 58: "icmp6"}

Names = Callable[[IP, IP], tuple[str, ...]]
"""As ``core.contracts.Resolver.learned``."""
Owner = Callable[[Network, Address, Address], Process | None]
"""As ``core.contracts.Owners.find``."""
Traced = Callable[[Counted, Process | None], tuple[int, tuple[str, ...]] | None]
"""The rule of a flow of the kernel, and its outbounds; None where that is not certain."""


def _falling(number: float | None) -> float:
    """A key that puts great numbers first and unknown ones last."""
    return 1 if number is None else -number


def _natural(text: str) -> list[str | int]:
    """A key that puts 10.0.0.9 before 10.0.0.10."""
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", text))]


class Counts(NamedTuple):
    """What the keys ask that are in ``BY_COUNT``."""

    up: int | None = None
    down: int | None = None
    rate_up: float | None = None
    rate_down: float | None = None
    age: float | None = None


BY_COUNT = {"bytes", "up", "down", "rate", "age"}
KEYS: dict[str, Callable[[Any], Any]] = {
    "bytes": lambda row: _falling(None if row.up is None or row.down is None else row.up + row.down),
    "up": lambda row: _falling(row.up),
    "down": lambda row: _falling(row.down),
    "rate": lambda row: _falling(None if row.rate_up is None else row.rate_up + (row.rate_down or 0.0)),
    "age": lambda row: _falling(row.age),
    "source": lambda row: _natural(row.source),
    "destination": lambda row: _natural(row.destination),
    "outbound": lambda row: row.chain,
    "process": lambda row: (row.process is None, row.process or "", row.pid or 0),
}


class Chosen:
    """The first ``limit`` rows by ``sort`` of those that hold all ``words``; never many more at once.

    A row of the kernel is made when it is needed, as it costs more than reading it did."""

    def __init__(self, sort: str, words: Sequence[str], limit: int = LIMIT) -> None:
        self.by_count = sort in BY_COUNT and not words
        """Whether the counts alone say if a row is among them."""
        self._key = KEYS[sort]
        self._words = words
        self._limit = limit
        self._rows: list[tuple[Any, Row | None, Counted | None]] = []
        self.left_out = 0

    def add(self, row: Row, found: Counted | None = None) -> None:
        """``found``: what the row was made of."""
        if all(row.holds(word) for word in self._words):
            self._rows.append((self._key(row), row, found))
            self._shorten()

    def hold(self, counts: Counts, found: Counted) -> None:
        """A row that need not be made yet; only where ``by_count``."""
        self._rows.append((self._key(counts), None, found))
        self._shorten()

    def _shorten(self) -> None:
        """A few at a time: sorting what is sorted but for its end takes a tenth of sorting all."""
        if len(self._rows) >= self._limit + SURPLUS:
            self._cut()

    def _cut(self) -> None:
        self._rows.sort(key=itemgetter(0))
        self.left_out += max(0, len(self._rows) - self._limit)
        del self._rows[self._limit :]

    def rows(self) -> list[Row]:
        return [row for row, _ in self.chosen() if row is not None]

    def chosen(self) -> list[tuple[Row | None, Counted | None]]:
        """As ``rows``, each with what it was made of, or is to be."""
        self._cut()
        return [(row, found) for _, row, found in self._rows]


FlowKey = tuple[int, int, int]
"""``Counted.key``."""
Before = Mapping[Running | FlowKey, tuple[int, int]]
"""What flows had carried up and down at an earlier look, by what they are."""


class Rates:
    """From two looks. A flow that the first has not seen began between them."""

    def __init__(self, before: Before, seconds: float) -> None:
        self._before = before
        self._seconds = max(seconds, 1e-3)

    def of(self, key: Running | FlowKey, up: int | None, down: int | None) -> dict[str, Any]:
        if up is None or down is None:
            return {}
        before = self._before.get(key, (0, 0))
        if up < before[0] or down < before[1]:  # another flow
            before = 0, 0
        return {
            "rate_up": round((up - before[0]) / self._seconds, 1),
            "rate_down": round((down - before[1]) / self._seconds, 1),
        }


def userspace_row(
    running: Running, devices: Devices, now: float, owner: Owner, rates: Rates | None = None
) -> Row | None:
    """None for a session of which the kernel carries all, or that is only remembered."""
    flow, destinations = running.flow, running.destinations
    if not destinations:
        return None
    # A UDP session's is known to each of its destinations' routes alone.
    process = flow.process or owner(flow.network, flow.source, flow.local or destinations[0])
    up, down = running.up, running.down
    return Row(
        "userspace", flow.network, str(flow.source), str(destinations[0]), running.name or None, flow.inbound,
        running.chain, running.rule, up, down, age=round(now - running.since, 1),
        destinations=len(destinations), **_owned(process), **_from(devices, flow.source.ip),
        **(rates.of(running, up, down) if rates is not None else {}),
    )  # fmt: skip


def kernel_row(
    found: Counted, names: Names, devices: Devices, process: Process | None = None, rates: Rates | None = None
) -> Row:
    entry, up, down = found.entry, found.sent, found.received
    network = NETWORKS.get(entry.protocol, str(entry.protocol))
    source = entry.source.ip
    learned = learned_names(found, names)
    return Row(
        "kernel", network, _end(entry.source, network), _end(entry.destination, network),
        learned[0] if learned else None, chain=DIRECT,
        up=up and up.bytes, down=down and down.bytes,
        packets_up=up and up.packets, packets_down=down and down.packets, timeout=found.timeout, **_owned(process),
        **_from(devices, source),
        **(rates.of(found.key, up and up.bytes, down and down.bytes) if rates is not None else {}),
    )  # fmt: skip


def learned_names(found: Counted, names: Names) -> tuple[str, ...]:
    """Of its destination."""
    source, destination = found.entry.source.ip, found.entry.destination.ip
    return names(destination, source) if source is not None and destination is not None else ()


def _from(devices: Devices, source: IP | None) -> dict[str, Any]:
    device = devices.find(source) if source is not None else None
    return {} if device is None else {"device": device.mac or None, "hostname": device.hostname or None}


def _owned(process: Process | None) -> dict[str, Any]:
    if process is None:
        return {}
    user = process.user or (str(process.uid) if process.uid >= 0 else None)
    return {"process": process.path or None, "pid": process.pid or None, "user": user}


def owner_of(found: Counted, owner: Owner) -> Process | None:
    network = NETWORKS.get(found.entry.protocol)
    if network == "tcp" or network == "udp":
        return owner("tcp" if network == "tcp" else "udp", found.entry.source, found.entry.destination)
    return None


def _end(address: Address, network: str) -> str:
    return str(address) if network in ("tcp", "udp") else str(address.host)


async def batches(tracked: Generator[Counted, None, None]) -> AsyncIterator[list[Counted]]:
    """``BATCH`` flows at a time, read in a thread. Raises KernelError."""
    reading: asyncio.Future[list[Counted]] | None = None
    try:
        while True:
            reading = asyncio.ensure_future(asyncio.to_thread(lambda: list(islice(tracked, BATCH))))
            if not (batch := await asyncio.shield(reading)):
                return
            yield batch
    finally:
        if reading is not None and not reading.done():  # we were cancelled; it cannot be closed while it is read
            await asyncio.wait([reading])
        tracked.close()


async def listing(
    running: Sequence[Running], tracked: Generator[Counted, None, None] | None, names: Names, devices: Devices,
    now: float, request: dict[str, Any], owner: Owner = lambda network, source, destination: None,
    noted: Callable[[Counted], None] = lambda found: None, trace: Traced | None = None,
    rates: Rates | None = None,
) -> Listing:  # fmt: skip
    """The answer to ``request`` (``sort``, ``filter``). ``tracked`` is read in a thread; ``names``, ``devices``,
    ``owner`` and ``trace`` are asked in the loop, to which they belong. ``noted`` hears of each flow of the kernel,
    listed or not; ``trace`` is asked for the first ``TRACED`` of those that are listed. Raises GatewayError."""
    sort, words = request.get("sort", "bytes"), request.get("filter", [])
    if sort not in KEYS:
        raise GatewayError(f'no sort key "{sort}"; keys: {", ".join(KEYS)}')
    chosen = Chosen(sort, [str(word) for word in words])
    for start in range(0, len(running), BATCH):
        for one in running[start : start + BATCH]:
            if (row := userspace_row(one, devices, now, owner, rates)) is not None:
                chosen.add(row)
        await asyncio.sleep(0)
    if tracked is not None:
        async for batch in batches(tracked):
            for found in batch:
                noted(found)
                if chosen.by_count:
                    chosen.hold(_counts(found, rates), found)
                else:
                    chosen.add(kernel_row(found, names, devices, owner_of(found, owner), rates), found)
    rows: list[Row] = []
    traced = 0
    for index, (row, made_of) in enumerate(chosen.chosen()):
        if index % STEP == 0:
            await asyncio.sleep(0)
        if made_of is not None:
            process = owner_of(made_of, owner)
            row = row or kernel_row(made_of, names, devices, process, rates)
            if trace is not None and traced < TRACED:
                traced += 1
                if (told := trace(made_of, process)) is not None:
                    row = structs.replace(row, rule=told[0], chain=told[1] or row.chain)
        assert row is not None
        rows.append(row)
    return Listing(rows, chosen.left_out)


def _counts(found: Counted, rates: Rates | None) -> Counts:
    up, down = found.sent, found.received
    if up is None or down is None:
        return _UNKNOWN
    if rates is None:
        return Counts(up.bytes, down.bytes)
    return Counts(up.bytes, down.bytes, **rates.of(found.key, up.bytes, down.bytes))


_UNKNOWN = Counts()
