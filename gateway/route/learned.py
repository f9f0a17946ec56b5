"""What our DNS resolved: which names own an address, and what that means for the kernel's learned maps. Pure.

An element of a profile's learned map is needed only where the verdict with the names differs from the one without.
Owners of different verdicts make a conflict, a SNIFF element, which outlives the entries it shields. ``now`` is in
seconds of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from gateway.core.address import IP
from gateway.kernel.plan import Family, LearnedChange, Verdict
from gateway.route.compile import Compiled
from gateway.route.item.ipset import Point

SHORTEST = 60
GRACE = 600
"""Seconds an address stays learned after its TTL: applications and browsers keep answers longer."""
LONGEST = 86400
SHIELD = 60
"""Seconds that a conflict outlives its owners in the kernel."""
WORTH = 30
"""Seconds by which an expiry must grow before the kernel is told."""
MOST_ADDRESSES = 65536
"""The address that was learned longest ago is forgotten at the bound: it is sniffed again, never misrouted."""
MOST_OWNERS = 64
"""Of one address; more make it a conflict until the last of them expires."""
MOST_ORDERS = 65536
"""Pairs of client and address whose last name is remembered; the oldest is forgotten at the bound, and that client gets
the name that anybody resolved last."""


class _Address:
    """Owners in the order of their last answer, newest last."""

    __slots__ = ("crowded", "owners")

    def __init__(self) -> None:
        self.owners: dict[str, float] = {}
        self.crowded = 0.0


class Learned:
    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._addresses: dict[Point, _Address] = {}
        self._last: dict[tuple[Point, Point], str] = {}
        self._elements: dict[tuple[int, Point], tuple[Verdict, float]] = {}
        self._due: list[tuple[float, Point]] = []

    def __len__(self) -> int:
        return len(self._addresses)

    def learn(self, name: str, client: IP, addresses: Iterable[tuple[IP, int]], now: float) -> list[LearnedChange]:
        """``name`` resolved for ``client`` to each (address, TTL in seconds). The changes must be in the kernel before
        the answer is released."""
        name = name.rstrip(".").lower()
        changes: list[LearnedChange] = []
        who = (client.version, int(client))
        for ip, ttl in addresses:
            point = (ip.version, int(ip))
            expiry = now + min(max(ttl, SHORTEST) + GRACE, LONGEST)
            entry = self._addresses.pop(point, None) or _Address()
            if len(self._addresses) >= MOST_ADDRESSES:
                changes += self._forget(next(iter(self._addresses)))
            self._addresses[point] = entry
            old = entry.owners.pop(name, 0.0)
            if len(entry.owners) >= MOST_OWNERS:
                entry.crowded = max(entry.crowded, *entry.owners.values())
                del entry.owners[next(iter(entry.owners))]
            entry.owners[name] = max(old, expiry)
            heappush(self._due, (entry.owners[name], point))
            self._remember(who, point, name)
            changes += self._update(point, now)
        if len(self._due) > 4 * len(self._addresses) + 1024:
            self._due = [(end, p) for p, entry in self._addresses.items() for end in {min(entry.owners.values())}]
            self._due.sort()
        return changes

    def _remember(self, who: Point, point: Point, name: str) -> None:
        key = (who, point)
        self._last.pop(key, None)
        if len(self._last) >= MOST_ORDERS:
            del self._last[next(iter(self._last))]
        self._last[key] = name

    def names(self, address: IP, client: IP, now: float | None = None) -> tuple[str, ...]:
        """Names that own ``address``, the one that ``client`` resolved last first, then the newest; expired ones are
        left out where ``now`` is given."""
        point = (address.version, int(address))
        entry = self._addresses.get(point)
        if entry is None:
            return ()
        found = [name for name, end in reversed(entry.owners.items()) if now is None or end > now]
        mine = self._last.get(((client.version, int(client)), point))
        if mine in found:
            found.remove(mine)
            found.insert(0, mine)
        return tuple(found)

    def expire(self, now: float) -> list[LearnedChange]:
        """Owners whose time has come are gone; what follows from that."""
        changes: list[LearnedChange] = []
        while self._due and self._due[0][0] <= now:
            _, point = heappop(self._due)
            entry = self._addresses.get(point)
            if entry is None:
                continue
            entry.owners = {name: end for name, end in entry.owners.items() if end > now}
            if not entry.owners and entry.crowded <= now:
                changes += self._forget(point)
                continue
            ends = [*entry.owners.values(), *([entry.crowded] if entry.crowded > now else [])]
            heappush(self._due, (min(ends), point))
            changes += self._update(point, now)
        return changes

    def next_expiry(self) -> float | None:
        """When ``expire`` has something to do, or None."""
        return self._due[0][0] if self._due else None

    def rebuilt(self, compiled: Compiled, now: float) -> tuple[Learned, list[LearnedChange]]:
        """The successor after a recompile, and what to change in the learned maps, of which those stay whose profile
        still learns; the others go with what they hold. This one is to be used on only where the kernel refuses."""
        learning = {number for number, profile in enumerate(compiled.steering.profiles) if profile.learned}
        after = Learned(compiled)
        after._addresses, after._last, after._due = self._addresses, self._last, self._due
        after._elements = {key: held for key, held in self._elements.items() if key[0] in learning}
        return after, [change for point in after._addresses for change in after._update(point, now)]

    def _forget(self, point: Point) -> list[LearnedChange]:
        self._addresses.pop(point, None)
        return self._set(point, {}, 0.0, 0.0)

    def _update(self, point: Point, now: float) -> list[LearnedChange]:
        entry = self._addresses[point]
        family: Family = 4 if point[0] == 4 else 6
        names = tuple(entry.owners)
        wanted: dict[int, Verdict] = {}
        for number, profile in enumerate(self._compiled.steering.profiles):
            if not profile.learned:
                continue
            verdict = Verdict.SNIFF
            if entry.crowded <= now:
                verdict = self._compiled.learned_verdict(number, family, point[1], names)
            if verdict is not self._compiled.learned_verdict(number, family, point[1], ()):
                wanted[number] = verdict
        return self._set(point, wanted, max([*entry.owners.values(), entry.crowded]), now)

    def _set(self, point: Point, wanted: dict[int, Verdict], expiry: float, now: float) -> list[LearnedChange]:
        """Brings the elements of an address to ``wanted``; conflicts come first, so that nothing is unshielded."""
        family: Family = 4 if point[0] == 4 else 6
        changes: list[LearnedChange] = []
        for number in range(len(self._compiled.steering.profiles)):
            key = (number, point)
            old, until = self._elements.get(key, (None, 0.0))
            new = wanted.get(number)
            if new is None:
                if old is not None:
                    del self._elements[key]
                    changes.append(LearnedChange(number, family, point[1], old, None, 0))
                continue
            end = expiry + (SHIELD if new is Verdict.SNIFF else 0)
            if old is new and end < until + WORTH:
                continue
            end = max(end, until) if old is new else end
            self._elements[key] = (new, end)
            changes.append(LearnedChange(number, family, point[1], old, new, max(1, round(end - now))))
        return changes
