"""All uplinks of a gateway, and which of them is the elected one: ``core.contracts.Leases``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel import sysctl
from gateway.kernel.netlink.diff import Inverse
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.uplink.options import UplinkOptions
from gateway.uplink.plan import Snapshot
from gateway.uplink.uplink import Uplink

log = logging.getLogger(__name__)

FORWARDING = (("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1"))
EARLY_DEMUX = "net/ipv4/ip_early_demux"
"""Of both families. Without it no socket of this host is searched before a packet's route is known, as the kernel's
documentation advises routers: a fortieth more connections are forwarded, those to sockets lose nothing (measured)."""


class Uplinks:
    """``state``: folder for lease files and DUID. ``record``: the journal. ``mark``: SO_MARK of our own sockets.
    ``own``: the LANs' addresses, never taken as name servers. The monitor is run by the caller."""

    def __init__(
        self,
        options: Sequence[UplinkOptions],
        netlink: Netlink,
        monitor: Monitor,
        state: Path,
        record: Callable[[Inverse], None],
        mark: int = 0,
        own: frozenset[IP] = frozenset(),
    ) -> None:
        self._options = tuple(options)
        self._netlink = netlink
        self._monitor = monitor
        self._state = state
        self._mark = mark
        self._own = own
        self._record = record
        self._uplinks: dict[str, Uplink] = {}
        self._watchers: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Returns at once: an uplink without interface, carrier or lease waits."""
        for one in self._options:
            uplink = self._uplinks[one.interface] = self._make(one)
            await uplink.start()

    async def stop(self, release: bool = False) -> None:
        """Addresses and routes stand, but where the lease is released."""
        for uplink in self._uplinks.values():
            await uplink.stop(release)

    async def reload(self, options: Sequence[UplinkOptions]) -> None:
        """Only what differs is touched; an uplink that left the configuration loses its address and routes."""
        wanted = {one.interface: one for one in options}
        for name in [name for name in self._uplinks if name not in wanted]:
            await self._uplinks.pop(name).remove()
        for name, one in wanted.items():
            if name in self._uplinks:
                await self._uplinks[name].reload(one)
            else:
                self._uplinks[name] = self._make(one)
                await self._uplinks[name].start()
        self._options = tuple(options)
        self._tell()

    def forward(self) -> None:
        """Enable forwarding, IPv4 and IPv6. The uplinks that exist accept router advertisements first: else the
        kernel would drop their IPv6 default route. Of others' uplinks those on which it is the kernel that follows
        them. Raises KernelError."""
        for one in self._options:
            name = f"net/ipv6/conf/{one.interface}/accept_ra"
            if sysctl.path_of(name).exists() and (not one.external or sysctl.read(name) == "1"):
                sysctl.write(name, 2, self._record)
        for name, value in FORWARDING:
            if sysctl.path_of(name).exists():
                sysctl.write(name, value, self._record)
        with contextlib.suppress(KernelError):
            sysctl.write(EARLY_DEMUX, 0, self._record)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(uplink.snapshot for uplink in self._uplinks.values())

    @property
    def elected(self) -> Snapshot | None:
        """The cheapest uplink that is ready."""
        return min((one for one in self.snapshots if one.ready), key=lambda one: one.cost, default=None)

    def __getitem__(self, interface: str) -> Uplink:
        return self._uplinks[interface]

    # core.contracts.Leases

    def servers(self, interface: str = "") -> tuple[IP, ...]:
        found = self._find(interface)
        return found.dns if found else ()

    def search(self, interface: str = "") -> tuple[str, ...]:
        found = self._find(interface)
        return found.search if found else ()

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    def _make(self, one: UplinkOptions) -> Uplink:
        return Uplink(
            one, self._netlink, self._monitor, self._state, self._record, self._tell, self._mark, self._own
        )  # fmt: skip

    def _find(self, interface: str) -> Snapshot | None:
        if interface in ("", "auto"):
            # Before the first is ready: what is known already, see Uplink.
            known = (one for one in self.snapshots if one.dns)
            return self.elected or min(known, key=lambda one: one.cost, default=None)
        return self._uplinks[interface].snapshot if interface in self._uplinks else None

    def _tell(self) -> None:
        for changed in self._watchers:
            try:
                changed()
            except Exception:
                log.exception("subscriber of the uplinks")
