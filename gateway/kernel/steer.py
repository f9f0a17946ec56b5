"""What sends flows to userspace while the gateway lives: the owned table, its one writer, and the reaper.

``inet gateway`` belongs to this object's socket and vanishes with it, by ``close`` or by SIGKILL. The base table is not
its business, nor are the ip rule and the route that the routing bit needs (``mark.ROUTE``, ``mark.TABLE``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from gateway.core.address import IP, Address
from gateway.core.errors import KernelError
from gateway.kernel import conntrack
from gateway.kernel.nft.element import Step, batch, delete_table
from gateway.kernel.nft.writer import Writer
from gateway.kernel.plan import Capture, LearnedChange, Steering, Verdict
from gateway.kernel.reaper import Reaper, Will

log = logging.getLogger(__name__)

DNS = (53).to_bytes(2, "big")
BACK = 300
"""Seconds in which the next datagram of a UDP flow handed back to the kernel is direct; then its entry keeps it so."""


class Steerer:
    """Opens the writer and starts the reaper in the network namespace of the calling thread. Raises KernelError. Not
    for use by several threads at once. Where the kernel knows no owners (``owned`` False; None asks it) the table has
    none, and the reaper takes it away: others could change it, and a reaper that is killed too leaves it behind.
    ``silent``: seconds without ``beat`` after which the reaper kills this process; 0 never."""

    def __init__(self, owned: bool | None = None, silent: int = 0) -> None:
        self._writer = Writer(owned)
        self._applied = False
        self._patient = 0
        self._will = Will() if self.owned else Will(delete_table())
        try:
            self._reaper = Reaper(self._will, silent)
        except KernelError:
            self._writer.close()
            raise

    @property
    def owned(self) -> bool:
        """The table has an owner: the kernel itself takes it away."""
        return self._writer.owned

    def apply(self, steering: Steering, capture: Capture, changes: Sequence[LearnedChange] = ()) -> None:
        """Make the table what is wanted, from one moment on; running flows keep their class, learned sets keep what
        they hold but for ``changes``. Raises KernelError, and the table is then as it was (EBUSY: another gateway
        steers here); ValueError on a bad interface name."""
        if not self._applied:
            conntrack.delete_userspace()
        with self.patience():  # a large interval map takes a small processor many seconds
            self._writer.apply(steering, capture, changes)
        self._applied = True

    def capture(self, steering: Steering, capture: Capture) -> None:
        """After ``apply`` of the same ``steering``: only what of ``capture`` stands in the skeleton's chains, as that
        which is paused. Raises KernelError, and the table is then as it was."""
        self._writer.capture(steering, capture)

    def elements(self, changes: Sequence[LearnedChange]) -> list[LearnedChange]:
        """Change learned sets now. Returns those for which a set had no room: the address is then in no set of that
        profile. Raises KernelError."""
        return self._writer.elements(changes)

    def put(self, name: str, key: bytes, timeout: int) -> None:
        """Into a set of the skeleton, for ``timeout`` seconds from now, 0 for ever; each part of ``key`` padded to 4
        bytes where there are several. Raises KernelError: ENFILE where the set is full."""
        self._writer.steps([(Step(True, name, key, timeout), Step(False, name, key), Step(True, name, key, timeout))])

    def take(self, name: str, keys: Iterable[bytes]) -> None:
        """Out of a set of the skeleton, whether they are there or not. Raises KernelError."""
        self._writer.steps([(Step(True, name, key, 1), Step(False, name, key)) for key in keys])

    def hand_back(self, source: Address, destination: Address, timeout: int = BACK) -> None:
        """Let the kernel carry a UDP flow that userspace holds: forget its entry, classify it direct from now on. The
        caller then sends the datagrams it holds from a raw socket with ``mark.OWN`` and the client's source address.
        Raises KernelError, and ValueError without two addresses of one family."""
        one, other = source.ip, destination.ip
        if one is None or other is None or one.version != other.version:
            raise ValueError("hand_back needs two addresses of one family")
        ports = (source.port.to_bytes(2, "big") + b"\0\0", destination.port.to_bytes(2, "big") + b"\0\0")
        self.put(f"back{one.version}", one.packed + ports[0] + other.packed + ports[1], timeout)
        conntrack.delete_flow("udp", source, destination)

    def put_off(self, network: Literal["tcp", "udp"], device: IP, timeout: int) -> None:
        """Drop first packets of that device that would begin a flow in userspace, for ``timeout`` seconds. Raises
        KernelError: ENFILE where 4096 devices are put off."""
        key = device.packed + bytes((conntrack.PROTOCOLS[network], 0, 0, 0))
        self.put(f"full{device.version}", key, timeout)

    def counters(self) -> dict[Verdict, conntrack.Count]:
        """Flows (as packets: the first of each), and bytes of their first packets, by verdict since the first
        ``apply``. Raises KernelError."""
        return self._writer.counters()

    def carried(self) -> conntrack.Count:
        """What else passed of direct flows, but for what went the short way. Raises KernelError."""
        return self._writer.carried()

    def hold(self, name: str, links: Sequence[int] = ()) -> None:
        """After ``apply``: the table outlives us. A keeper, found again by ``name`` alone on its command line, holds
        its socket and ``links`` (descriptors of the process programs' links) until SIGTERM; when we are gone it lets
        go of the LAN's DNS, which nobody would answer. Again after ``links`` have changed. Raises KernelError."""
        row = (Step(True, "captured", DNS), Step(False, "captured", DNS))
        last, _ = batch([row], 1)
        into = self._writer.fd
        own = (into,) if self.owned else ()
        self._replace(Will(last, into if self.owned else -1, (*own, *links), name))

    def let_go(self) -> None:
        """The contrary of ``hold``. Raises KernelError."""
        if self.held:
            self._replace(self._will)

    def beat(self) -> None:
        """To be called each second: the process does its work. A reaper that somebody has killed is replaced. Raises
        KernelError where that fails."""
        if not self._reaper.beat(self._patient > 0):
            log.warning("process %d, which cleans up after us, is gone: another takes its place", self._reaper.pid)
            self._replace(self._reaper.will)
            self._reaper.beat(self._patient > 0)

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """In the block ``beat`` may come late, by up to two minutes. Blocks may nest. Raises nothing."""
        self._patient += 1
        self._reaper.beat(True)
        try:
            yield
        finally:
            self._patient -= 1
            self._reaper.beat(self._patient > 0)

    def watch(self, silent: int) -> None:
        """Another number of seconds. Raises KernelError."""
        if silent != self._reaper.silent:
            self._replace(self._reaper.will, silent)

    @property
    def reaper(self) -> int:
        """Process number of the child that outlives us."""
        return self._reaper.pid

    @property
    def held(self) -> bool:
        """The table outlives us."""
        return bool(self._reaper.will.name)

    def _replace(self, will: Will, silent: int = -1) -> None:
        old, self._reaper = self._reaper, Reaper(will, self._reaper.silent if silent < 0 else silent)
        old.end()

    def leave(self) -> None:
        """End our part: what is held goes on without us, else as ``close``. Any number of times."""
        self._writer.close()
        self._reaper.close()

    def close(self) -> None:
        """Take the table away, then what is left of userspace flows. Any number of times."""
        if not self._writer.closed:
            try:
                self.let_go()
            except KernelError:
                self._reaper.end()
        self.leave()
