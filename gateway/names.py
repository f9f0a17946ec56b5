"""What answers and sniffed connections say of names, brought to the kernel: learned sets, shared prefixes, hints.

Everything is in the kernel when a method returns: a DNS answer is given out, and a flow dialled, only then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.core.flow import Flow
from gateway.kernel.plan import Family, LearnedChange, Verdict
from gateway.kernel.sockopt import is_local
from gateway.kernel.steer import Steerer
from gateway.route import hints
from gateway.route.compile import Compiled
from gateway.route.explain import Query
from gateway.route.hints import Hints, Origin, Way
from gateway.route.item.ipset import Point
from gateway.route.learned import Learned
from gateway.route.prefixes import DAY

log = logging.getLogger("gateway.names")


class Wishes(NamedTuple):
    """``hints``: give the kernel a client's next connections where one like them was sniffed and is direct. ``shared``:
    in shared prefixes believe a name only after such a connection."""

    hints: bool = False
    shared: bool = False


class Names:
    """See ``core.contracts.LearnedSink``. ``clock``: seconds, steady. ``failed`` hears what the kernel refused: names
    must then be believed no more. Without a ``steerer`` nothing is written."""

    def __init__(
        self, compiled: Compiled, wishes: Wishes, clock: Callable[[], float], failed: Callable[[KernelError], None]
    ) -> None:
        self._steerer: Steerer | None = None
        self._compiled = compiled
        self._wishes = wishes
        self._clock = clock
        self._failed = failed
        self._learned = Learned(compiled, wishes.shared)
        self._hints = Hints()

    @property
    def steerer(self) -> Steerer | None:
        return self._steerer

    @steerer.setter
    def steerer(self, steerer: Steerer | None) -> None:
        """The table of another one is empty, and what was said while there was none was heard by nobody: nothing that
        is known may be believed."""
        if steerer is not self._steerer:
            self._learned = Learned(self._compiled, self._wishes.shared)
            self._hints.clear()
        self._steerer = steerer

    # -- what is heard

    def learn(
        self, name: str, client: IP, addresses: Iterable[tuple[IP, int]], targets: Iterable[tuple[str, int]] = ()
    ) -> None:
        self._write(self._learned.learn(name, client, addresses, self._clock(), targets))

    def owners(self, address: IP, client: IP) -> tuple[str, ...]:
        return self._learned.names(address, client, self._clock())

    def decided(self, flow: Flow, name: str, direct: bool) -> None:
        """A captured flow was judged in userspace, after it had shown ``name`` ("" for none). ``direct``: the kernel
        would carry it just so."""
        address, client, now = flow.destination.ip, flow.source.ip, self._clock()
        if address is None or client is None:
            return
        if name:
            self._write(self._learned.sniffed(name, address, now))
        if flow.network == "tcp" and (self._wishes.hints or self._shared(address, now)):
            way = Way(_point(client), _point(address), flow.destination.port)
            if not direct:
                if self._hints.elsewhere(way, now):
                    self._take([way])
                return
            origin = ("", "") if flow.device is None else (flow.device.interface, flow.device.mac)
            if name and self._may(way, origin, name, now) and not is_local(client):
                self._hint(way, origin, now)

    def _shared(self, address: IP, now: float) -> bool:
        return self._wishes.shared and self._learned.shared(address, now)

    def _may(self, way: Way, origin: Origin, name: str, now: float) -> bool:
        """Whether all names of the address agree; where only shared prefixes are confirmed, our DNS must have said so
        too, as it does elsewhere."""
        return (self._wishes.hints or self._learned.owns(name, way.address)) and self._agreed(way, origin, now)

    def _agreed(self, way: Way, origin: Origin, now: float) -> bool:
        version, number = way.address
        family: Family = 4 if version == 4 else 6
        profile, _ = self._compiled.lookup("tcp", way.port, family, number, source=way.client[1], device=origin)
        return self._learned.agreed(profile, way.address, now)

    def expire(self) -> bool:
        """What is over goes; to be called every few seconds, and soon again where it returns True: there is more."""
        now = self._clock()
        self._hints.expire(now)
        self._write(self._learned.expire(now))
        due = self._learned.next_expiry()
        return due is not None and due <= now

    # -- to the kernel

    def _write(self, changes: Sequence[LearnedChange]) -> None:
        points, prefixes = self._learned.fresh()
        if self.steerer is None:
            return
        now = self._clock()
        try:
            if changes:
                for change in self.steerer.elements(changes):
                    log.warning("learned names: no room for %s", ip_address(change.address))
                    self._learned.refused(change)
        except KernelError as error:
            self._failed(error)
            return
        # A new name may be judged otherwise than the one that was shown.
        held = [(way, self._hints.origin(way)) for point in points for way in self._hints.at(point)]
        gone = [way for way, origin in held if not self._agreed(way, origin, now)]
        self._take([way for way in gone if self._hints.drop(way)])
        for family, number in prefixes:
            self._put("shared", family, number.to_bytes(4 if family == 4 else 16, "big"), DAY)

    def _hint(self, way: Way, origin: Origin, now: float) -> None:
        """Unless it is there already, or may not be."""
        if self._hints.direct(way, now, origin) and not self._put("hint", way.address[0], _key(way), hints.LASTS):
            self._hints.drop(way)

    def _put(self, name: str, version: int, key: bytes, timeout: int) -> bool:
        """False where it is not in the kernel: the flow is sniffed, or the name believed at once."""
        if self.steerer is None:
            return False
        try:
            self.steerer.put(f"{name}{version}", key, timeout)
        except KernelError as error:
            log.warning("%s%d: %s", name, version, error)
            return False
        return True

    def _take(self, ways: Collection[Way]) -> None:
        try:
            for version in (4, 6):
                keys = [_key(way) for way in ways if way.address[0] == version]
                if keys and self.steerer is not None:
                    self.steerer.take(f"hint{version}", keys)
        except KernelError as error:
            self._failed(error)

    # -- other rules

    def rebuild(self, compiled: Compiled, wishes: Wishes) -> tuple[Learned, list[LearnedChange]]:
        """What is learned, under other rules, and what to change in the kernel for it. Hints are of the old rules and
        go at once."""
        if self.steerer is None:
            return Learned(compiled, wishes.shared), []
        self._take(self._hints.clear())
        return self._learned.rebuilt(compiled, self._clock(), wishes.shared)

    def adopt(self, learned: Learned, compiled: Compiled, wishes: Wishes) -> None:
        """The kernel has them now."""
        self._learned, self._compiled, self._wishes = learned, compiled, wishes

    # -- what is shown

    def judge(self, query: Query, profile: int, nameless: Verdict) -> tuple[Verdict, str]:
        """What the kernel's sets make of a flow that has a verdict without them, and why ("" for the names alone). See
        ``route.explain.Judge``."""
        address, client, now = query.address, query.source and query.source.ip, self._clock()
        if address is None or not self._compiled.steering.profiles[profile].learned:
            return nameless, ""
        if client is not None and query.process is None and query.network == "tcp":
            left = self._hints.left(Way(_point(client), _point(address), query.port), now)
            if left > 0:
                return Verdict.DIRECT, f"in the kernel for {left:.0f} s: one like it was sniffed, and was direct"
        found = self._learned.element(profile, address)
        if (found or nameless) is Verdict.SNIFF:
            names = self._learned.all_names(address, now)
            if found is None and len(names) < 2:
                return nameless, ""
            known = ", ".join(names) or "names that are forgotten"
            return Verdict.SNIFF, f"in userspace: names that may be judged differently share the address: {known}"
        if found is not Verdict.USER and self._shared(address, now):
            return Verdict.SNIFF, "in userspace: names that are judged differently share the prefix of the address"
        return found or nameless, ""

    def tables(self) -> dict[str, Any]:
        """Each bounded table: what it holds now, its bound, how often something was forgotten or refused at it."""
        now = self._clock()
        self._hints.expire(now)
        found = {**self._learned.tables(now), **self._hints.tables()}
        return {name: {"now": now, "most": most, "evicted": gone} for name, (now, most, gone) in found.items()}


def _point(ip: IP) -> Point:
    return ip.version, int(ip)


def _key(way: Way) -> bytes:
    """Of the sets hint4 and hint6."""
    size = 4 if way.address[0] == 4 else 16
    ends = way.client[1].to_bytes(size, "big") + way.address[1].to_bytes(size, "big")
    return ends + way.port.to_bytes(2, "big") + b"\0\0"
