"""The kernel's part of a gateway: the router that stands when nothing of ours runs.

Order: journal, base table (the WAN is closed before it has an address), forwarding, uplinks, LANs. What it made stands
when it stops, but for the offload of flows; ``down`` undoes it from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.dns.server.local import RESOLV_CONF, read_servers
from gateway.kernel import conntrack, journal, mark, sysctl
from gateway.kernel.bpf.demand import INTERVAL
from gateway.kernel.bpf.offload import Offload
from gateway.kernel.journal import Journal
from gateway.kernel.netlink.link import ETHERNET, Link
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.kernel.netlink.undo import undo as undo_network
from gateway.kernel.nft import base
from gateway.kernel.nft.library import Library
from gateway.kernel.nft.watch import Watch
from gateway.kernel.plan import Base, PortForward
from gateway.kernel.standing import Standing
from gateway.options import GatewayOptions
from gateway.service.claim import Claim
from gateway.uplink.dnsmasq.daemon import undo as undo_process
from gateway.uplink.lan import Lans
from gateway.uplink.uplinks import Uplinks

UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
"""Where systemd-resolved writes whom it asks itself; resolv.conf names it alone then."""
TRIES = 8
"""To make the base table while nobody else changes rules."""
ACCOUNTING = "net/netfilter/nf_conntrack_acct"

log = logging.getLogger(__name__)


class Host:
    """``run`` and ``state`` are the folders of this instance. Raises OSError where the journal cannot be written."""

    def __init__(self, options: GatewayOptions, run: Path, state: Path) -> None:
        self.options = options
        self.journal = Journal(run)
        self.netlink = Netlink(self.journal.record)
        self.monitor = Monitor(self.netlink)
        own = frozenset(prefix.ip for lan in options.lans for prefix in lan.address)
        self.uplinks = Uplinks(options.uplinks, self.netlink, self.monitor, state, self.journal.record, mark.OWN, own)
        self.lans = Lans(
            options.lans, self.netlink, self.monitor, run, state, self.journal.record, self._servers,
            arms=options.arms,
        )  # fmt: skip
        self._ends = contextlib.AsyncExitStack()
        """What ``stop`` does, last first, each whatever the others raise."""
        self._ends.callback(self.journal.close)
        self._watch = Watch(base.TABLE, base.SETS)
        self._ends.callback(self._watch.close)
        self._standing = Standing(self._watch, self._restore, self.netlink, self.monitor)
        self._tasks: list[asyncio.Task[None]] = []
        self._narrow: list[str] = []
        self._offload: Offload | None = None
        self._offload_problem = ""
        """Why flows are not offloaded as wanted."""
        self._carried = conntrack.NOTHING
        """What went the short way of offload objects that are gone."""
        self._counting = False
        """It was us who switched accounting on."""

    async def start(self) -> None:
        """Returns when everything that needs nobody else stands; leases and late interfaces come when they come.
        Raises KernelError where the kernel refuses the base table or forwarding."""
        self._base(self.options)
        self._account(self.options)
        await self._ends.enter_async_context(self.netlink)
        self._ends.callback(self._detach_offload)
        self._ends.push_async_callback(self._end_tasks)
        self._ends.push_async_callback(self.uplinks.stop)
        self._ends.push_async_callback(self.lans.stop)
        self._ends.callback(self.monitor.unwatch, self._attach_offload)
        self._ends.callback(self.monitor.unwatch, self._clamp, self._clamp)
        self.uplinks.watch(self.lans.refresh)
        if self.options.lans:
            self.uplinks.forward()
        self.monitor.watch(self._clamp)
        self.monitor.watch_addresses(self._clamp)
        self.monitor.watch(self._attach_offload)
        # dnsmasq before any address: whoever is online has names too, whenever we are killed.
        await self.lans.start()
        await self.uplinks.start()
        self._tasks = [
            asyncio.create_task(self.monitor.run(), name="monitor"),
            asyncio.create_task(self._offload_on_demand(), name="offload"),
            asyncio.create_task(self._standing.run(), name="standing"),
        ]

    def _servers(self) -> tuple[IP, ...]:
        """Whom dnsmasq asks. Where another program configures the uplink and no DHCP server tells of name servers,
        those of this host, which that program knows."""
        found = self.uplinks.servers()
        if found or not any(one.external for one in self.options.uplinks):
            return found
        every = (ip for path in (UPSTREAM, RESOLV_CONF) if path.exists() for ip in read_servers(path))
        return tuple(dict.fromkeys(ip for ip in every if not ip.is_loopback))

    async def reload(self, options: GatewayOptions) -> None:
        """Apply what differs. Raises KernelError; what stood before goes on."""
        self._base(options)
        self.options = options
        self._account(options)
        self._clamp()
        self._attach_offload()
        if options.lans:
            self.uplinks.forward()
        await self.uplinks.reload(options.uplinks)
        await self.lans.reload(options.lans, options.arms)

    def _clamp(self, changed: Collection[str] = ()) -> None:
        """TCP's segment size is clamped on uplinks alone that carry less than some LAN: it costs a connection a
        twentieth of what forwarding it costs."""
        links, lans, wans = self.monitor.links, self.options.lans, [one.interface for one in self.options.uplinks]
        widest = max((links[lan.interface].mtu for lan in lans if lan.interface in links), default=0)
        unknown = any(lan.interface not in links for lan in lans)
        narrow = [name for name in wans if unknown or name not in links or _carries(links[name]) < widest]
        if narrow != self._narrow:
            try:
                # Where somebody has taken some of the table away, it is made anew, and this with it.
                if self._watch.whole() and self._watch.put(lambda: base.clamp(Library(), narrow)):
                    self._narrow = narrow
            except KernelError as error:
                log.warning("segment size: %s", error)

    def _attach_offload(self, changed: Collection[str] = ()) -> None:
        """Offload the flows between the interfaces that can take part."""
        if changed and self._offload_problem and self._offload is None:
            return  # refused before, and asked again with the next configuration
        options, self._offload_problem = self.options, ""
        if options.kernel.offload == "off":
            self._detach_offload()
            return
        links, names = self.monitor.links, [one.interface for one in options.uplinks]
        names += [one.interface for one in options.lans]
        there = [links[name] for name in names if name in links and links[name].type == ETHERNET]
        # What arrives would be gone before a classifier there (that of a shaper) has seen it.
        filtered = [link.name for link in there if link.filtered]
        if filtered:
            self._offload_problem = f"not by {', '.join(filtered)}: a tc filter there sees each packet"
        try:
            if self._offload is None:
                self._offload = Offload(self.journal.record)
            self._offload.follow({link.index: link.name for link in there if not link.filtered})
        except KernelError as error:
            self._offload_problem = str(error)
            log.warning("offload: %s", error)

    async def _offload_on_demand(self) -> None:
        """Attach and detach its programs as what passes asks for."""
        while True:
            await asyncio.sleep(INTERVAL)
            if (offload := self._offload) is None:
                continue
            try:
                wanted = offload.switch(asyncio.get_running_loop().time())
                if wanted is not None:
                    await asyncio.to_thread(offload.attend, wanted)
            except (OSError, RuntimeError) as error:  # no descriptor, no thread left: flows keep the way they have
                if not self._offload_problem:
                    log.warning("offload: %s", error)
                self._offload_problem = str(error)

    def _detach_offload(self) -> None:
        if self._offload is not None:
            with contextlib.suppress(KernelError):
                self._carried = self.short_way
            self._offload.close()
            self._offload = None

    def _account(self, options: GatewayOptions) -> None:
        """Of flows that begin from now on. What was switched on by others stays on."""
        wanted = options.kernel.accounting
        if wanted == self._counting:
            return
        try:
            changed = sysctl.write(ACCOUNTING, int(wanted), self.journal.record)
            self._counting = wanted and changed
        except KernelError as error:
            log.warning("accounting: %s", error)

    @property
    def short_way(self) -> conntrack.Count:
        """What went the short way of class direct."""
        return self._carried if self._offload is None else self._carried.plus(self._offload.carried)

    @property
    def offload(self) -> Offload | None:
        """What counts them by flow."""
        return self._offload

    async def stop(self) -> None:
        """End our part, however far ``start`` came; the plain router stands."""
        await self._ends.aclose()

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def status(self) -> dict[str, Any]:
        """Its part of what ``gateway status`` shows."""
        own = {"offload": self._offload_problem, "standing": self._standing.problem}
        return {
            "uplinks": [
                {
                    "interface": one.interface,
                    "addresses": list(one.addresses),
                    "problem": one.problem,
                    "owner": one.owner,
                    "ready": one.ready,
                    "elected": one is self.uplinks.elected,
                    "dns": [str(ip) for ip in one.dns],
                }
                for one in self.uplinks.snapshots
            ],
            "lans": [lan.interface for lan in self.options.lans],
            "offload": [] if self._offload is None else list(self._offload.interfaces.values()),
            "offloading": self._offload is not None and self._offload.attached,
            "restored": self._standing.restored,
            "problems": self.lans.problems | {name: told for name, told in own.items() if told},
        }

    @property
    def keeper(self) -> str:
        """The word on the command line by which this instance's keeper is known (``fail: hold``)."""
        return f"--keeper={self.journal.path.parent}"

    async def dismiss(self) -> None:
        """End the keeper that a former run has left: the table that it holds goes, and the guard stands already. Raises
        KernelError."""
        await asyncio.to_thread(undo_process, {"argument": self.keeper})

    def _base(self, options: GatewayOptions) -> None:
        self.journal.record(base.UNDO)
        if options.fail == "hold":
            self.journal.record({"kind": "process", "op": "kill", "argument": self.keeper})
        for _ in range(TRIES):
            if self._watch.put(lambda: base.apply(Library(), base_plan(options))):
                break
        else:
            raise KernelError(f"table {base.TABLE}", errno.EBUSY, "other programs change rules all the time")
        self._narrow = [one.interface for one in options.uplinks]

    def _restore(self) -> None:
        """Raises KernelError."""
        self._base(self.options)
        self._clamp()


def _carries(link: Link) -> int:
    """Bytes of the largest packet, of the family that carries less: a router advertisement may have said so of IPv6."""
    try:
        return min(link.mtu, int(sysctl.read(f"net/ipv6/conf/{link.name}/mtu")))
    except KernelError:
        return link.mtu


def base_plan(options: GatewayOptions) -> Base:
    """The base table that ``options`` ask for."""
    return Base(
        lans=tuple(lan.interface for lan in options.lans),
        # An arm is no border: who is on it is the LAN, and its other router keeps the border.
        wans=tuple(uplink.interface for uplink in options.uplinks if uplink.interface not in options.arms),
        firewall=options.firewall,
        fail=options.fail,
        forwards=tuple(PortForward(item.network, item.port, item.to, item.to_port) for item in options.forwards),
        open_tcp=tuple(options.open_tcp),
        open_udp=tuple(options.open_udp),
        arms=options.arms,
    )


def executors() -> dict[str, journal.Executor]:
    """Who undoes a step, by its kind."""
    network = dict.fromkeys(("address", "route", "rule", "link", "sysctl"), undo_network)
    return {**network, "nft": base.undo, "process": undo_process}


async def undo(run: Path) -> list[str]:
    """Undo everything that the instance's journal holds. Returns what could not be undone, a line each; the journal
    then stays."""
    failed = await journal.replay(run / "undo.jsonl", executors())
    # Its reaper may have been killed with it; they would outlive the table that keeps them in.
    with contextlib.suppress(KernelError):
        conntrack.delete_userspace()
    return failed


async def down(run: Path, first: Callable[[Path], Awaitable[list[str]]]) -> list[str]:
    """As ``undo``, after what ``first`` undoes, and remove its run folder; that stays too where something could not be
    undone. Raises Claimed where it runs."""
    claim, forget = Claim(run), False
    try:
        failed = await first(run) + await undo(run)
        forget = not failed
    finally:
        claim.release(forget=forget)
    return failed
