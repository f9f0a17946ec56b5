"""What flows and what has passed: ``core.contracts.Accounts``, of what the router lists, conntrack, nft's counters and
what flow offload counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing

from gateway.core.account import By, Key, Listing, Sums, Total
from gateway.core.address import Address
from gateway.core.contracts import Running
from gateway.core.errors import GatewayError, KernelError
from gateway.core.flow import Flow, Network, Process
from gateway.flows import (
    BATCH,
    DIRECT,
    NETWORKS,
    STEP,
    Before,
    FlowKey,
    Rates,
    batches,
    learned_names,
    listing,
    owner_of,
)
from gateway.host import Host
from gateway.kernel import mark
from gateway.kernel.bpf.offload import ends
from gateway.kernel.conntrack import NOTHING, Count, Counted
from gateway.kernel.ended import Ended
from gateway.kernel.plan import Verdict
from gateway.kernel.shape import counted
from gateway.ledger import Ledger
from gateway.plane import Plane
from gateway.route.retrace import retrace
from gateway.steering import Kernel

INTERVAL = 60.0
"""Most seconds between two looks."""
HERE = "(router)"
"""Device of the router's own flows."""
NOBODY = "(forwarded)"
"""Process of flows of other hosts, and of those whose process is not known."""

log = logging.getLogger("gateway.accounts")


class Accounts:
    """See ``core.contracts.Accounts``. ``host`` and ``kernel`` None: all flows are userspace's. ``looks``: how often
    conntrack was read."""

    def __init__(self, plane: Plane, host: Host | None, kernel: Kernel | None) -> None:
        self._plane = plane
        self._host = host
        self._kernel = kernel
        self._ledger = Ledger()
        self._looking = asyncio.Lock()
        self._watchers = 0
        self._ended: Ended | None = None
        self.looks = 0
        self.overruns = 0

    # -- what flows

    async def flows(self, sort: str = "bytes", words: Sequence[str] = (), interval: float = 0.0) -> Listing:
        if not 0 <= interval <= INTERVAL:
            raise GatewayError(f"the interval is 0 to {INTERVAL:.0f} seconds")
        if sort == "rate" and not interval:
            raise GatewayError("rates need an interval")
        rates: Rates | None = None
        with self.watch() if interval else contextlib.nullcontext():
            if interval:
                clock = self._plane.edge.loop.time
                begun, before = clock(), await self._glance()
                await asyncio.sleep(interval)
                rates = Rates(before, clock() - begun)
            return await self._listing(sort, words, rates)

    async def _listing(self, sort: str, words: Sequence[str], rates: Rates | None) -> Listing:
        plane, request = self._plane, {"sort": sort, "filter": words}
        async with self._look() as tracked:
            return await listing(
                plane.router.flows(), tracked, plane.resolver.learned, plane.devices, plane.edge.loop.time(), request,
                self._owner, self._note, self._trace, rates,
            )  # fmt: skip

    async def _glance(self) -> Before:
        """What each flow has carried by now."""
        before: dict[Running | FlowKey, tuple[int, int]] = {}
        for number, running in enumerate(self._plane.router.flows(), 1):
            before[running] = running.up, running.down
            if number % BATCH == 0:
                await asyncio.sleep(0)
        async for found in self._all():
            if (up := found.sent) is not None and (down := found.received) is not None:
                before[found.key] = up.bytes, down.bytes
        return before

    def _trace(self, found: Counted, process: Process | None) -> tuple[int, tuple[str, ...]] | None:
        plane, kernel, entry = self._plane, self._kernel, found.entry
        network = NETWORKS.get(entry.protocol)
        source = entry.source.ip
        if kernel is None or source is None or (network != "tcp" and network != "udp"):
            return None
        device = plane.devices.find(source)
        flow = Flow("tcp" if network == "tcp" else "udp", kernel.tag, "tproxy", entry.source, entry.destination, "",
                    process, device=device)  # fmt: skip
        names = learned_names(found, plane.resolver.learned)
        owned = device is not None or (process is not None and bool(process.path))
        told = retrace(plane.router.engine, flow, names, kernel.kept, owned=owned)
        if told is None:
            return None
        return told[0], plane.router.chain(told[1], flow.network) if told[1] else ()

    # -- what has passed

    async def totals(self, by: By) -> list[Total]:
        if by == "class":
            found = self.classes()
        else:
            async for _ in self._all():
                pass
            found = await self._grouped(by)
        return sorted(found, key=lambda total: -total.bytes)

    def classes(self) -> list[Total]:
        """By class; asks nothing of conntrack. ``direct``: the kernel's. ``user``: what userspace carries. ``reject``,
        ``drop``: refused in either plane, with the bytes of first packets that the kernel refused."""
        carried = Sums()
        for _, sums in self._plane.router.carried():
            carried.add(sums.flows, sums.up, sums.down, sums.packets)
        up, down = carried.up, carried.down
        found = [Total("user", carried.flows, up + down, 0, up, down)]
        told = None if self._kernel is None else self._kernel.carried()
        if told is not None:
            first, more = told[0][Verdict.DIRECT], told[1]
            direct = first.plus(more).plus(self._short_way())
            found.append(Total("direct", first.packets, direct.bytes, direct.packets))
        for name, verdict in (("reject", Verdict.REJECT), ("drop", Verdict.DROP)):
            refused = NOTHING if told is None else told[0][verdict]
            here = self._plane.router.refusals[name]
            found.append(Total(name, refused.packets + here, refused.bytes, refused.packets))
        return found

    async def _grouped(self, by: By) -> list[Total]:
        named: dict[str, Sums] = {}
        for number, (key, sums) in enumerate((*self._plane.router.carried(), *self._ledger.tally.copy())):
            if number % STEP == 0:
                await asyncio.sleep(0)  # a device is asked of the kernel
            named.setdefault(self._name(by, key), Sums()).add(sums.flows, sums.up, sums.down, sums.packets)
        return [
            Total(name, sums.flows, sums.up + sums.down, sums.packets, sums.up, sums.down)
            for name, sums in named.items()
        ]

    def _name(self, by: By, key: Key) -> str:
        if by == "outbound":
            return key.outbound
        if by == "process":
            return key.process or NOBODY
        if isinstance(key.source, str):
            return key.source
        device = self._plane.devices.find(key.source)
        return HERE if device is None else device.hostname or device.mac or str(key.source)

    # -- the kernel's flows

    @asynccontextmanager
    async def _look(self) -> AsyncIterator[Generator[Counted, None, None] | None]:
        """All flows of the kernel, each of which ``_note`` is to be told; None where it has none."""
        if self._kernel is None:
            yield None
            return
        async with self._looking:
            self.looks += 1
            counts = await asyncio.to_thread(self._short_ways)
            self._ledger.begin()
            whole = False
            try:
                yield merged(counted(mark.DIRECT, mark.CLASS), counts)
                whole = True
            finally:
                self._ledger.finish(whole)

    async def _all(self) -> AsyncIterator[Counted]:
        """The same, told already."""
        async with self._look() as tracked:
            if tracked is not None:
                async for batch in batches(tracked):
                    for found in batch:
                        self._note(found)
                        yield found

    def _note(self, found: Counted) -> None:
        self._ledger.note(found, self._key)

    def _key(self, found: Counted) -> Key:
        process = owner_of(found, self._owner)
        return Key(self._outbound, found.entry.source.host, "" if process is None else process.path)

    def _owner(self, network: Network, source: Address, destination: Address) -> Process | None:
        return self._plane.owners.find(network, source, destination, search=False)

    @property
    def _outbound(self) -> str:
        """That the kernel's flows count for."""
        return self._plane.router.engine.direct or DIRECT[0]

    def _short_ways(self) -> Mapping[bytes, Count]:
        """In a thread."""
        offload = None if self._host is None else self._host.offload
        with contextlib.suppress(KernelError):
            return {} if offload is None else offload.counts()
        return {}

    def _short_way(self) -> Count:
        with contextlib.suppress(KernelError):
            return NOTHING if self._host is None else self._host.short_way
        return NOTHING

    # -- flows that end

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        self._watchers += 1
        try:
            if self._kernel is not None and self._ended is None:
                self._hear()
            yield
        finally:
            self._watchers -= 1
            if not self._watchers and self._ended is not None:
                self._plane.edge.loop.remove_reader(self._ended.fd)
                while self._ended.read():  # what ended in the block
                    pass
                self.overruns += self._ended.lost
                self._ended.close()
                self._ended = None

    def _hear(self) -> None:
        try:
            self._ended = Ended(mark.DIRECT, mark.CLASS, self._end)
        except KernelError as error:
            log.warning("short flows of the kernel are not counted: %s", error)
        else:
            self._plane.edge.loop.add_reader(self._ended.fd, self._ended.read)

    def _end(self, found: Counted) -> None:
        offload = None if self._host is None else self._host.offload
        if offload is not None:
            there, back = ways(found)
            found = found._replace(short_up=offload.count(there), short_down=offload.count(back))
        self._ledger.end(found, lambda ended: Key(self._outbound, ended.entry.source.host))


def ways(found: Counted) -> tuple[bytes, bytes]:
    """Both directions of a flow, as flow offload knows them."""
    entry = found.entry
    return (
        ends(entry.source, entry.destination, entry.protocol),
        ends(entry.reply_source, entry.reply_destination, entry.protocol),
    )


def merged(tracked: Generator[Counted, None, None], counts: Mapping[bytes, Count]) -> Generator[Counted, None, None]:
    """With what went the short way."""
    with closing(tracked):
        for found in tracked:
            if counts:
                there, back = ways(found)
                yield found._replace(short_up=counts.get(there, NOTHING), short_down=counts.get(back, NOTHING))
            else:
                yield found
