"""One uplink: waits for its interface and its carrier, runs its client, applies the lease, publishes what it is.

Nothing here waits on anything else of the program: events set a flag, one task converges the kernel to what is wanted
now. What stands in the kernel stays there when this object stops; only ``release`` and ``remove`` take it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel import sysctl
from gateway.kernel.clock import boottime
from gateway.kernel.netlink import diff
from gateway.kernel.netlink.diff import Address, Inverse, Route
from gateway.kernel.netlink.link import Link
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.uplink import owner, plan
from gateway.uplink.dhcp4.client import Client
from gateway.uplink.dhcp4.enquirer import Enquirer
from gateway.uplink.dhcp4.inform import Here, Names
from gateway.uplink.dhcp4.lease import Lease
from gateway.uplink.dhcp4.machine import Config
from gateway.uplink.options import UplinkOptions
from gateway.uplink.owner import LinkOwned
from gateway.uplink.plan import Snapshot

log = logging.getLogger(__name__)

RETRY = (1.0, 30.0)
"""First and longest pause after the kernel refused something."""
AGAIN = 5.0
"""Seconds between two looks at an interface that another program configures."""
SYSCTLS = (
    # Router advertisements are followed although we forward (2), else the IPv6 default route goes.
    ("net/ipv6/conf/{}/accept_ra", "2"),
    # The second address of a network lives on when the first goes: an address can be changed without a gap.
    ("net/ipv4/conf/{}/promote_secondaries", "1"),
    # nft/base.nft refuses our own addresses as sources.
    ("net/ipv4/conf/{}/accept_local", "1"),
    # A default route through a dead link does not win.
    ("net/ipv4/conf/{}/ignore_routes_with_linkdown", "1"),
    ("net/ipv6/conf/{}/ignore_routes_with_linkdown", "1"),
)


def duid(state: Path) -> bytes:
    """A DUID-UUID (RFC 6355), made once and kept in ``state``. Not kept where that cannot be written."""
    path = state / "duid"
    try:
        kept = bytes.fromhex(path.read_text())
        if len(kept) == 18:
            return kept
    except (OSError, ValueError):
        pass
    made = b"\x00\x04" + uuid.uuid4().bytes
    try:
        state.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(made.hex())
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s: %s", path, error)
    return made


class Uplink:
    """``changed()`` is called after each change of ``snapshot``. ``own``: addresses of this host, never taken as name
    servers. ``record`` gets the inverses of sysctls (``netlink`` has its own)."""

    def __init__(
        self,
        options: UplinkOptions,
        netlink: Netlink,
        monitor: Monitor,
        state: Path,
        record: Callable[[Inverse], None],
        changed: Callable[[], None],
        mark: int = 0,
        own: frozenset[IP] = frozenset(),
    ) -> None:
        self.options = options
        self.snapshot = Snapshot(options.interface, options.cost)
        self._netlink = netlink
        self._monitor = monitor
        self._state = state
        self._record = record
        self._changed = changed
        self._mark = mark
        self._own = own
        self._client: Client | None = None
        self._lease: Lease | None = None
        self._enquirer: Enquirer | None = None
        self._informed: Names | None = None
        self._decided = False
        self._prepared = 0
        self._flaps = 0
        self._pause = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._dirty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def interface(self) -> str:
        return self.options.interface

    async def start(self) -> None:
        """Returns at once; the rest happens as the interface, carrier and server allow."""
        self._monitor.watch(self._links)
        if self.options.external:
            self._monitor.watch_addresses(self._dirty.set)
        self._dirty.set()
        self._task = asyncio.create_task(self._run(), name=f"uplink {self.interface}")

    async def stop(self, release: bool = False) -> None:
        """Address and routes stand, unless the lease is released (asked here or by the options)."""
        self._monitor.unwatch(self._links, self._dirty.set)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._enquirer is not None:
            self._enquirer.close()
            self._enquirer = None
        client, self._client = self._client, None
        if client is None:
            return
        if release or (self.options.dhcp4 is not None and self.options.dhcp4.release):
            client.release()
            self._lease, self._decided = None, True
            with contextlib.suppress(KernelError):
                await self._apply()
        client.close()

    async def remove(self) -> None:
        """Stop, and take all of ours off the interface: the uplink left the configuration."""
        await self.stop()
        with contextlib.suppress(KernelError):
            await self._netlink.reconcile(self.interface, (), ())

    async def reload(self, options: UplinkOptions) -> None:
        """Options that did not change touch nothing; a changed client starts anew from its lease file, the address
        standing meanwhile."""
        if options == self.options:
            return
        old = self.options
        restart = (options.dhcp4, options.external, options.inform) != (old.dhcp4, old.external, old.inform)
        if restart:
            await self.stop()
            self._informed = None
            self._decided = options.dhcp4 is None
            self._lease = None
        self.options = options
        self._prepared = 0
        if restart:
            await self.start()
        self._dirty.set()

    def renew(self) -> None:
        """Ask the server now."""
        if self._client is not None:
            self._client.renew()

    # Events

    def _links(self, names: frozenset[str]) -> None:
        if self.interface in names:
            self._dirty.set()

    def _leased(self, lease: Lease | None, reason: str) -> None:
        if lease is None:
            log.info("%s: lease %s", self.interface, reason)
        elif self._lease is None or lease.address != self._lease.address:
            log.info("%s: lease %s/%d from %s, %s", self.interface, lease.address, lease.prefix, lease.server, reason)
        self._lease, self._decided = lease, True
        self._dirty.set()

    def _heard(self, names: Names | None) -> None:
        if names is not None and names != self._informed:
            servers = ", ".join(map(str, names.dns)) or "none"
            log.info("%s: name servers by DHCPINFORM from %s: %s", self.interface, names.server, servers)
        self._informed = names
        self._dirty.set()

    async def _run(self) -> None:
        await self._monitor.ready.wait()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._converge()
                self._pause = 0.0
            except LinkOwned as error:
                self._withhold(error)
            except (KernelError, OSError) as error:
                self._pause = min(max(self._pause * 2, RETRY[0]), RETRY[1])
                self._later(self._pause)
                log.warning("%s: %s", self.interface, error)
                link = self._monitor.links.get(self.interface)
                carrier = link is not None and link.ready
                self._publish(replace(self.snapshot, lease=self._lease, carrier=carrier, problem=str(error)))
            except Exception:
                # A bug must not end the uplink: the router would lose its address hours later.
                log.exception("uplink %s", self.interface)
                self._later(RETRY[1])

    def _later(self, seconds: float) -> None:
        """Look again then, unless it is put off or brought forward."""
        if self._again is not None:
            self._again.cancel()
        self._again = asyncio.get_running_loop().call_later(seconds, self._dirty.set)

    def _withhold(self, error: LinkOwned) -> None:
        """Nothing of ours is done on an interface that another program configures."""
        self._later(AGAIN)
        if self._client is not None:
            self._client.link_down()
        if self.snapshot.problem != str(error):
            log.error("%s: %s", self.interface, error)
        link = self._monitor.links.get(self.interface)
        carrier, who = link is not None and link.ready, str(error.owner)
        self._publish(Snapshot(self.interface, self.options.cost, carrier, problem=str(error), owner=who))

    # What is wanted

    async def _converge(self) -> None:
        link = self._monitor.links.get(self.interface)
        if link is None:
            self._prepared = 0
            if self._client is not None:
                self._client.link_down()
            if self._enquirer is not None:
                self._enquirer.here(Here(None, False))
            self._publish(Snapshot(self.interface, self.options.cost, lease=self._lease, problem="interface is absent"))
            return
        if not self.options.external:
            if self.options.dhcp4 is not None and self._prepared != link.index:
                await asyncio.to_thread(owner.refuse, self.interface, link.index)
            await self._prepare(link)
            self._drive(link)
            # Names first: killed in between, we leave a LAN that is not online yet, not one that is without names.
            self._publish(replace(self.snapshot, **self._names()))
            await self._apply()
        await self._look(link)

    async def _prepare(self, link: Link) -> None:
        """Once for each interface of this name."""
        if self._prepared == link.index:
            return
        for name, value in SYSCTLS:
            try:
                sysctl.write(name.format(self.interface), value, self._record)
            except KernelError as error:
                log.info("%s: %s", self.interface, error)
        await self._netlink.set_link(self.interface, up=True)
        self._prepared = link.index

    def _drive(self, link: Link) -> None:
        """Tell the client of the link; makes the client when there is a link to run it on."""
        options = self.options.dhcp4
        if options is None:
            self._decided = True
            return
        if self._client is None:
            config = Config(
                client_id=plan.client_id(options.client_id, link.hardware, self.interface, duid(self._state)),
                hostname=options.hostname,
                vendor_class=options.vendor_bytes,
                broadcast=options.broadcast,
                start_delay=options.start_delay,
                collect=options.collect,
                required=frozenset(options.required),
                allow=plan.allowed(options.allow),
                deny=plan.allowed(options.deny),
                add_router=options.add_router,
            )
            self._client = Client(self.interface, config, self._state, self._leased, self._mark)
        flaps, self._flaps = link.changes - self._flaps, link.changes
        if flaps > 1:
            # Down and up again between two looks: it may be another network now.
            self._client.link_down()
        if link.ready:
            self._client.link_up(link.index, link.hardware, link.type)
        else:
            self._client.link_down()

    async def _apply(self) -> None:
        addresses: list[Address] = []
        routes: list[Route] = []
        if self.options.static is not None:
            addresses, routes = plan.of_static(self.interface, self.options.static, self.options.cost)
        if self._lease is not None:
            await self._netlink.set_link(self.interface, mtu=plan.mtu(self.options, self._lease))
            address, more = plan.of_lease(self.interface, self._lease, self.options.cost, boottime())
            addresses.append(address)
            routes += more
        elif not self._decided:
            # An earlier run's address: the client has not yet heard whether it is still ours.
            addresses += [a for a in await self._netlink.addresses(self.interface) if a.valid is not None and _v4(a)]
            routes += [r for r in await self._netlink.routes(self.interface) if r.proto == diff.DHCP]
        if self._lease is None and self.options.mtu:
            await self._netlink.set_link(self.interface, mtu=plan.mtu(self.options, None))
        link = self._monitor.links.get(self.interface)
        # The kernel takes no routes through an interface that the operator has put down.
        await self._netlink.reconcile(self.interface, addresses, routes if link is not None and link.up else ())

    async def _look(self, link: Link) -> None:
        addresses = await self._netlink.addresses(self.interface)
        defaults = [r for r in await self._netlink.routes(self.interface) if not r.destination.prefixlen]
        waiting = self.options.dhcp4 is not None and self._lease is None
        if self.options.external and self.options.inform:
            self._ask(link, plan.asking(addresses))
        problem = "no carrier" if not link.ready else "no lease yet" if waiting else ""
        self._publish(
            Snapshot(
                self.interface, self.options.cost, link.ready, self._lease,
                tuple(f"{a.ip}/{a.prefix}" for a in addresses if not a.ip.is_link_local),
                tuple(r.gateway for r in defaults if r.gateway is not None and r.table == diff.MAIN),
                **self._names(), problem=problem,
            )
        )  # fmt: skip

    def _ask(self, link: Link, address: IPv4Address | None) -> None:
        if self._enquirer is None:
            self._enquirer = Enquirer(self.interface, self._heard, self._mark)
        flaps, self._flaps = link.changes - self._flaps, link.changes
        for carrier in (False, link.ready) if flaps > 1 else (link.ready,):
            self._enquirer.here(Here(address, carrier, link.index, link.hardware, link.type))

    def _names(self) -> dict[str, Any]:
        servers, search = plan.dns(self.options, self._lease, self._own, self._informed)
        return {"dns": servers, "search": search}

    def _publish(self, snapshot: Snapshot) -> None:
        if snapshot == self.snapshot:
            return
        self.snapshot = snapshot
        try:
            self._changed()
        except Exception:
            log.exception("subscriber of uplink %s", self.interface)


def _v4(address: Address) -> bool:
    return diff.family_of(address) == 4 and address.proto == diff.OWN
