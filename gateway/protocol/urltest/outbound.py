"""Flows leave through the member that answers quickest.

::

    start, network changed, gateway urltest --> check --> probe every member --> choose, for TCP and for UDP
    a flow --> used --> every interval, until unused for idle_timeout --> check
    a member cannot dial --> its delay is forgotten --> check, at most every AGAIN seconds
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from gateway.config.url import URL
from gateway.core.address import Address
from gateway.core.contracts import Outbound as Member
from gateway.core.contracts import Wiring
from gateway.core.delay import Delay
from gateway.core.errors import DialError, GatewayError
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.urltest.choice import choose
from gateway.protocol.urltest.options import OutboundOptions
from gateway.transport.probe import probe

NETWORKS: tuple[Network, ...] = ("tcp", "udp")
TOGETHER = 10
"""Probes of one group at a time, as in sing-box."""
AGAIN = 5.0
"""Seconds between two checks for which flows that failed are the reason."""

log = logging.getLogger("gateway.urltest")


class Outbound:
    """See ``core.contracts.Probes``."""

    type = "urltest"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.members = tuple(options.outbounds)
        self._options = options
        self._url = URL.parse(options.url)
        self._wiring = wiring
        self._chosen: dict[Network, str] = {}
        self._watchers: list[Callable[[], None]] = []
        self._started = False
        self._used = 0.0
        self._failed = float("-inf")
        """When a flow was the reason of a check."""
        self._check: asyncio.Task[None] | None = None
        self._ticks: asyncio.Task[None] | None = None

    # -- what is in use

    @property
    def now(self) -> str:
        return self.chosen("tcp") or self.chosen("udp")

    def chosen(self, network: Network) -> str:
        return self._chosen.get(network) or choose(self._carriers(network), {}, "", 0)

    @property
    def networks(self) -> frozenset[Network]:
        return frozenset(network for network in NETWORKS if self._carriers(network))

    def _carriers(self, network: Network) -> list[str]:
        return [tag for tag in self.members if network in self._wiring.outbounds[tag].networks]

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    def _leaf(self, tag: str) -> str:
        return self._wiring.outbounds.leaf(tag).tag

    def _choose(self) -> None:
        delays = {}
        for tag in self.members:
            if (delay := self._wiring.delays.get(self._leaf(tag))) is not None:
                delays[tag] = delay.milliseconds
        changed = False
        for network in NETWORKS:
            before = self.chosen(network)
            tag = self._chosen[network] = choose(self._carriers(network), delays, before, self._options.tolerance)
            if tag != before:
                changed = True
                log.info("%s: %s for %s in place of %s", self.tag, tag, network, before)
        if changed:
            self._switched()

    def _switched(self) -> None:
        if self._options.interrupt_exist_connections:
            self._wiring.router.close_flows(
                lambda running: (
                    self.tag in running.chain[:-1]
                    and running.chain[running.chain.index(self.tag) + 1] != self.chosen(running.flow.network)
                )
            )
        for changed in tuple(self._watchers):
            changed()

    # -- checks

    def start(self) -> None:
        if not self._started:
            self._started = True
            self._used = self._now()
            self._begin()

    def _now(self) -> float:
        return self._wiring.edge.loop.time()

    def _begin(self, force: bool = False) -> asyncio.Task[None]:
        """The check that is at work, or a new one."""
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(self._run(force), name=f"urltest {self.tag}")
        return self._check

    async def check(self, force: bool = False) -> None:
        if self._check is not None and not self._check.done():
            await asyncio.wait([self._check])
        await asyncio.wait([self._begin(force)])

    async def _run(self, force: bool) -> None:
        together = asyncio.Semaphore(TOGETHER)
        due = time.time() - self._options.interval

        async def one(tag: str) -> None:
            async with together:
                await self._probe(tag)

        leaves = dict.fromkeys(map(self._leaf, self.members))
        async with asyncio.TaskGroup() as group:
            for tag in leaves:
                known = self._wiring.delays.get(tag)
                if force or known is None or known.at <= due:
                    group.create_task(one(tag))
        self._choose()

    async def _probe(self, tag: str) -> None:
        try:
            found = await probe(self._wiring.edge, self._wiring.outbounds[tag], self._url)
        except (GatewayError, OSError) as error:
            log.debug("%s: %s: %s", self.tag, tag, error)
            self._wiring.delays.forget(tag)
        except Exception:
            log.exception("%s: %s", self.tag, tag)
            self._wiring.delays.forget(tag)
        else:
            log.debug("%s: %s: %d ms", self.tag, tag, found)
            self._wiring.delays.put(tag, Delay(found, time.time()))

    def _use(self) -> None:
        """A flow comes: the members are probed from time to time from now on."""
        before, self._used = self._used, self._now()
        if self._ticks is None and self._started:
            if self._used - before > self._options.interval:
                self._begin()
            self._ticks = asyncio.create_task(self._tick(), name=f"urltest {self.tag} ticks")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._options.interval)
            if self._now() - self._used > self._options.idle_timeout:
                break
            await asyncio.wait([self._begin()])
        self._ticks = None

    # -- flows

    def _member(self, network: Network) -> Member:
        self._use()
        if not (tag := self.chosen(network)):
            raise DialError(f"no member of {self.tag} carries {network}")
        return self._wiring.outbounds[tag]

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        member = self._member("tcp")
        try:
            return await member.connect(flow, destination)
        except (GatewayError, OSError):
            self._doubt(member)
            raise

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        member = self._member("udp")
        try:
            return await member.open_packets(flow, destination)
        except (GatewayError, OSError):
            self._doubt(member)
            raise

    def _doubt(self, member: Member) -> None:
        """It could not dial. Perhaps only that destination is gone: it is probed before another takes over."""
        self._wiring.delays.forget(self._leaf(member.tag))
        if self._started and self._now() - self._failed > AGAIN:
            self._failed = self._now()
            self._begin()

    async def close(self) -> None:
        """The members are closed by whoever made them."""
        tasks = [task for task in (self._check, self._ticks) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._started, self._ticks = False, None
