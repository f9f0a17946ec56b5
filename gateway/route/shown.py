"""Names that sniffed connections showed for an address and that our DNS did not resolve to it. Pure.

They can only make doubt: a client may show any name it likes. ``now`` is in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.route.forgotten import Forgotten
from gateway.route.item.ipset import Point

LASTS = 600
"""Seconds after a name was last shown; a conflict keeps its address in userspace, where it is shown again if in use."""
MOST_ADDRESSES = 8192
"""At the bound the address that was shown a new name longest ago is forgotten, and is a conflict for as long as it
would have been remembered (``doubt``)."""
MOST_NAMES = 8
"""Of one address; the one shown longest ago is forgotten in the same way."""


class Shown:
    def __init__(self) -> None:
        self._addresses: dict[Point, dict[str, float]] = {}
        self._forgotten = Forgotten()

    def __len__(self) -> int:
        return len(self._addresses)

    @property
    def bound(self) -> tuple[int, int]:
        """And how often something was forgotten at it."""
        return MOST_ADDRESSES, self._forgotten.count

    def add(self, point: Point, name: str, now: float) -> bool:
        """False where that is known, and will be for half its time."""
        names = self._addresses.get(point)
        if names is not None and names.get(name, 0.0) > now + LASTS / 2:
            return False
        if names is None:
            if len(self._addresses) >= MOST_ADDRESSES:
                oldest = next(iter(self._addresses))
                self._forgotten.add(oldest, max(self._addresses.pop(oldest).values()))
            names = self._addresses[point] = {}
        if name not in names and len(names) >= MOST_NAMES:
            self._forgotten.add(point, names.pop(next(iter(names))))
        names.pop(name, None)
        names[name] = now + LASTS
        return True

    def names(self, point: Point, now: float) -> dict[str, float]:
        """Name to its end; what is over goes."""
        names = self._addresses.get(point)
        if names is None:
            return {}
        for name in [name for name, until in names.items() if until <= now]:
            del names[name]
        if not names:
            del self._addresses[point]
        return names

    def ends(self) -> Iterator[tuple[Point, float]]:
        """Each address, and when the first of its names is over."""
        return ((point, min(names.values())) for point, names in self._addresses.items())

    def doubt(self, point: Point) -> float:
        """Until when further names, forgotten here, may have been shown for it."""
        return self._forgotten.until(point)
