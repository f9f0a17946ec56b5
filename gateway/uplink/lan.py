"""The networks behind us: their interfaces' addresses, and one dnsmasq that serves them all.

A LAN interface may come late; its addresses follow it. Addresses and dnsmasq stand when this object stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel import sysctl
from gateway.kernel.netlink.diff import Address
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.uplink.dnsmasq import render
from gateway.uplink.dnsmasq.daemon import Daemon
from gateway.uplink.options import LanOptions

log = logging.getLogger(__name__)
RETRY = 5.0
BRIDGES = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")
"""They are there, and on, once br_netfilter is loaded, as Docker does. What comes in through a bridge then passes the
hooks inside the bridge, and the socket that tproxy has found there is lost on the way up: nothing can be steered."""
REDIRECTS = "net/ipv4/conf/{}/send_redirects"
"""Sent where it is on for all or for the interface. Of IPv6 there is none, see nft/render.py."""


class Lans:
    """``servers()`` gives the upstream name servers for dnsmasq; call ``refresh`` when they change (``Uplinks.watch``).
    ``arms``: LANs that are uplinks too, which have their addresses from there."""

    def __init__(
        self,
        options: Sequence[LanOptions],
        netlink: Netlink,
        monitor: Monitor,
        run: Path,
        state: Path,
        record: Callable[[dict[str, Any]], None],
        servers: Callable[[], tuple[IP, ...]],
        *,
        program: str = "",
        cgroup: Path | None = None,
        arms: Collection[str] = (),
    ) -> None:
        self._problems: dict[str, str] = {}
        self.daemon = Daemon(run, state, record, program=program, cgroup=cgroup)
        self._options = tuple(options)
        self._arms = frozenset(arms)
        self._netlink = netlink
        self._monitor = monitor
        self._servers = servers
        self._record = record
        self._filtering = False
        """Bridges were filtered when we came."""
        self._dirty = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def problems(self) -> dict[str, str]:
        """LAN interface or "dnsmasq" -> one line for a person."""
        return self._problems | ({"dnsmasq": self.daemon.problem} if self.daemon.problem else {})

    @property
    def addresses(self) -> frozenset[IP]:
        return frozenset(prefix.ip for lan in self._options for prefix in lan.address)

    async def start(self) -> None:
        """Returns when dnsmasq runs (or has been found wanting); interfaces are waited for in the background."""
        self._monitor.watch(self._links)
        self._dirty.set()
        self._task = asyncio.create_task(self._run(), name="lans")
        await self._serve()

    async def stop(self) -> None:
        """Stop watching; everything stands."""
        self._monitor.unwatch(self._links)
        await self.daemon.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def reload(self, options: Sequence[LanOptions], arms: Collection[str] = ()) -> None:
        """Only what differs is touched; dnsmasq starts anew only where its configuration changed."""
        if (tuple(options), frozenset(arms)) == (self._options, self._arms):
            return
        kept = {lan.interface: {*lan.ports} for lan in options if lan.interface not in arms}
        gone = [lan for lan in self._options if lan.interface not in self._arms]
        self._options, self._arms = tuple(options), frozenset(arms)
        for lan in gone:
            with contextlib.suppress(KernelError):
                await self._let_go(lan, kept.get(lan.interface))
        self._dirty.set()
        await self._serve()

    async def _let_go(self, lan: LanOptions, kept: Collection[str] | None) -> None:
        """What of a former LAN is not wanted any more; ``kept``: the ports it still has, None where it is none."""
        if kept is None:
            await self._netlink.reconcile(lan.interface, (), ())
        for port in [port for port in lan.ports if port not in (kept or ())]:
            await self._netlink.undo({"kind": "link", "op": "free", "interface": port, "master": lan.interface})
        if lan.ports and not kept:
            await self._netlink.undo({"kind": "link", "op": "delete", "interface": lan.interface})

    def refresh(self) -> None:
        """The upstream name servers may have changed."""
        self.daemon.set_servers(ip for ip in self._servers() if ip not in self.addresses)

    async def _serve(self) -> None:
        self._problems.pop("dnsmasq", None)
        # Without an address of ours a LAN is somebody else's, who answers for names there.
        served = [lan for lan in self._options if lan.address or lan.interface in self._arms]
        if not served:
            return
        paths = {"servers": str(self.daemon.servers), "leases": str(self.daemon.leases)}
        text = render.config(served, log=str(self.daemon.folder / "dnsmasq.log"), **paths)
        self.refresh()
        try:
            await self.daemon.start(text)
        except (KernelError, OSError) as error:
            self._problems["dnsmasq"] = str(error)
            log.warning("%s", error)

    def _links(self, names: frozenset[str]) -> None:
        new = self._filtering and any(self._monitor.links[name].bridge is False for name in self._there(names))
        if new or any(name in names for lan in self._options for name in (lan.interface, *lan.ports)):
            self._dirty.set()

    def _there(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name in self._monitor.links]

    async def _run(self) -> None:
        await self._monitor.ready.wait()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            await self._unfilter()
            for lan in self._options:
                await self._apply(lan)

    async def _unfilter(self) -> None:
        """Where a LAN is a bridge, end the filtering inside bridges; others keep it, each by its own setting."""
        links, lans = self._monitor.links, [lan.interface for lan in self._options]
        if all(links[name].bridge is None for name in self._there(lans)):
            return
        try:
            self._filtering = self._filtering or any(_is_on(name) for name in BRIDGES)
            if self._filtering:
                for name in [name for name, link in links.items() if link.bridge is False and name not in lans]:
                    await self._netlink.filter_bridge(name)
                for name in filter(_is_on, BRIDGES):
                    sysctl.write(name, 0, self._record)
            self._problems.pop("bridges", None)
        except KernelError as error:
            self._problems["bridges"] = f"LANs that are bridges cannot be steered: {error}"
            log.warning("%s", self._problems["bridges"])

    async def _apply(self, lan: LanOptions) -> None:
        absent = [port for port in lan.ports if port not in self._monitor.links]
        if lan.interface not in self._monitor.links and not lan.ports:
            self._problems[lan.interface] = "interface is absent"
            return
        try:
            if lan.ports:
                await self._netlink.bridge(lan.interface, lan.ports)
                for port in lan.ports:
                    if port not in absent:
                        await self._netlink.set_link(port, up=True)
            # nft/base.nft refuses our own addresses as sources; where this cannot be written the kernel does so too.
            with contextlib.suppress(KernelError):
                sysctl.write(f"net/ipv4/conf/{lan.interface}/accept_local", 1, self._record)
            if lan.interface in self._arms:
                for name in ("all", lan.interface):
                    sysctl.write(REDIRECTS.format(name), 0, self._record)
            else:
                await self._netlink.set_link(lan.interface, up=True)
                wanted = [Address(lan.interface, prefix.ip, prefix.length) for prefix in lan.address]
                await self._netlink.reconcile(lan.interface, wanted, ())
            self._problems.pop(lan.interface, None)
            if absent:
                self._problems[lan.interface] = f"serves without {', '.join(absent)}: absent"
        except KernelError as error:
            self._problems[lan.interface] = str(error)
            log.warning("%s: %s", lan.interface, error)
            asyncio.get_running_loop().call_later(RETRY, self._dirty.set)


def _is_on(name: str) -> bool:
    try:
        return sysctl.read(name) == "1"
    except KernelError:
        return False
