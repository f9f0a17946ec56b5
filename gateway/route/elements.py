"""What the kernel's learned sets hold, as far as we wrote it: from one content to the next. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from gateway.core.address import IP
from gateway.kernel.plan import Family, LearnedChange, Verdict
from gateway.route.item.ipset import Point

SHIELD = 60
"""Seconds that a conflict outlives its owners in the kernel."""
WORTH = 30
"""Seconds by which an expiry must grow before the kernel is told."""


class Elements:
    def __init__(self) -> None:
        self._held: dict[Point, dict[int, tuple[Verdict, float]]] = {}
        """Profiles with an element of that address."""
        self._fills: Counter[tuple[int, int, Verdict]] = Counter()
        """Elements of each set: one a profile, IP version and verdict."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def points(self) -> Collection[Point]:
        """Addresses that have an element in any profile."""
        return self._held.keys()

    def set(
        self, point: Point, wanted: Mapping[int, Verdict], expiry: float, conflict: float, now: float
    ) -> list[LearnedChange]:
        """Brings the elements of an address to ``wanted`` (profile to verdict), which end at ``expiry``, SNIFF at
        ``conflict`` and a while."""
        family: Family = 4 if point[0] == 4 else 6
        held = self._held.get(point, {})
        changes: list[LearnedChange] = []
        # One object for all profiles: there may be many.
        values: dict[Verdict, tuple[Verdict, float]] = {Verdict.SNIFF: (Verdict.SNIFF, conflict + SHIELD)}
        for number in sorted({*held, *wanted}):
            old, until = held.get(number, (None, 0.0))
            new = wanted.get(number)
            if new is None:
                if old is not None:
                    self._drop(point, number)
                    changes.append(LearnedChange(number, family, point[1], old, None, 0))
                continue
            value = values.setdefault(new, (new, expiry))
            if old is new and value[1] < until + WORTH:
                continue
            self._put(point, number, value)
            changes.append(LearnedChange(number, family, point[1], old, new, max(1, round(value[1] - now))))
        return changes

    def _put(self, point: Point, number: int, value: tuple[Verdict, float]) -> None:
        if (old := self._held.setdefault(point, {}).get(number)) is not None:
            self._fills[number, point[0], old[0]] -= 1
        else:
            self._count += 1
        self._held[point][number] = value
        self._fills[number, point[0], value[0]] += 1

    def _drop(self, point: Point, number: int) -> None:
        old, _ = self._held[point].pop(number)
        self._count -= 1
        self._fills[number, point[0], old] -= 1
        if not self._held[point]:
            del self._held[point]

    def lost(self, change: LearnedChange) -> None:
        """The kernel had no room for what ``change`` brings: it holds nothing there."""
        point = (int(change.family), change.address)
        if change.profile in self._held.get(point, {}):
            self._drop(point, change.profile)

    def of(self, profile: int, address: IP) -> Verdict | None:
        """None: no set has it."""
        held = self._held.get((address.version, int(address)), {}).get(profile)
        return None if held is None else held[0]

    def kept(self, profiles: Collection[int]) -> Elements:
        """Those of ``profiles`` alone."""
        after = Elements()
        for point, held in self._held.items():
            for number, value in held.items():
                if number in profiles:
                    after._put(point, number, value)
        return after

    def fullest(self) -> int:
        """How many elements the fullest set has."""
        return max(self._fills.values(), default=0)
