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
        self._held: dict[tuple[int, Point], tuple[Verdict, float]] = {}

    def set(
        self, point: Point, wanted: Mapping[int, Verdict], expiry: float, conflict: float, profiles: int, now: float
    ) -> list[LearnedChange]:
        """Brings the elements of an address to ``wanted`` (profile to verdict, of so many profiles), which end at
        ``expiry``, SNIFF at ``conflict`` and a while."""
        family: Family = 4 if point[0] == 4 else 6
        changes: list[LearnedChange] = []
        for number in range(profiles):
            key = (number, point)
            old, until = self._held.get(key, (None, 0.0))
            new = wanted.get(number)
            if new is None:
                if old is not None:
                    del self._held[key]
                    changes.append(LearnedChange(number, family, point[1], old, None, 0))
                continue
            end = conflict + SHIELD if new is Verdict.SNIFF else expiry
            if old is new and end < until + WORTH:
                continue
            end = max(end, until) if old is new else end
            self._held[key] = (new, end)
            changes.append(LearnedChange(number, family, point[1], old, new, max(1, round(end - now))))
        return changes

    def of(self, profile: int, address: IP) -> Verdict | None:
        """None: no set has it."""
        held = self._held.get((profile, (address.version, int(address))))
        return None if held is None else held[0]

    def kept(self, profiles: Collection[int]) -> Elements:
        """Those of ``profiles`` alone."""
        after = Elements()
        after._held = {key: held for key, held in self._held.items() if key[0] in profiles}
        return after

    def fullest(self) -> int:
        """How many elements the fullest set has; there is one a profile, family and verdict."""
        fills = Counter((profile, version, verdict) for (profile, (version, _)), (verdict, _) in self._held.items())
        return max(fills.values(), default=0)
