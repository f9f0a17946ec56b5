"""Which connections of a client the kernel may carry because one just like them was sniffed. Pure.

Keyed by client, destination and port. ``now`` is in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from gateway.route.forgotten import Forgotten
from gateway.route.item.ipset import Point

LASTS = 60
"""Seconds in which the client's next connections to the same port of the same address are not sniffed."""
KEPT = LASTS + 1
"""Seconds that one is remembered here: no shorter than in the kernel, whose clock is coarser, so that none is there
that could not be taken back."""
OTHER = 600
"""Seconds in which a connection of the same kind that went elsewhere forbids it."""
MOST_HINTS = 16384
"""At the bound there is none for further connections, which are sniffed, until some are over."""
MOST_OTHERS = 16384
"""Ways that went elsewhere; the one that did longest ago is forgotten, and counts as one still for as long
(``Forgotten``)."""


Origin = tuple[str, str]
"""Interface and hardware address of the neighbour that a flow comes from, as far as they are known."""


class Way(NamedTuple):
    """What a hint is for: TCP from ``client`` to ``port`` of ``address``."""

    client: Point
    address: Point
    port: int


class Hints:
    def __init__(self) -> None:
        self._until: dict[Way, float] = {}
        self._origins: dict[Way, Origin] = {}
        self._at: dict[Point, set[Way]] = {}
        self._others: dict[Way, float] = {}
        self._forgotten = Forgotten()
        self.refused = 0

    def __len__(self) -> int:
        return len(self._until)

    def left(self, way: Way, now: float) -> float:
        """Seconds in which the kernel has it still; none or less than none where it has not."""
        return self._until.get(way, 0.0) - (KEPT - LASTS) - now

    def tables(self) -> dict[str, tuple[int, int, int]]:
        """As ``Learned.tables``."""
        return {
            "hints": (len(self._until), MOST_HINTS, self.refused),
            "hints forbidden": (len(self._others), MOST_OTHERS, self._forgotten.count),
        }

    def direct(self, way: Way, now: float, origin: Origin = ("", "")) -> bool:
        """A connection was sniffed and is direct. True: the kernel is to be told, for ``LASTS`` seconds. ``origin``:
        where it came from, for which alone that is so."""
        if max(self._others.get(way, 0.0), self._forgotten.until(way)) > now or self._until.get(way, 0.0) > now:
            return False
        if way not in self._until and len(self._until) >= MOST_HINTS:
            self.refused += 1
            return False
        self._until.pop(way, None)
        self._until[way] = now + KEPT
        self._origins[way] = origin
        self._at.setdefault(way.address, set()).add(way)
        return True

    def elsewhere(self, way: Way, now: float) -> bool:
        """A connection went another way. True: the kernel has a hint, which must go."""
        if way not in self._others and len(self._others) >= MOST_OTHERS:
            oldest = next(iter(self._others))
            self._forgotten.add(oldest, self._others.pop(oldest))
        self._others.pop(way, None)
        self._others[way] = now + OTHER
        return self.drop(way)

    def drop(self, way: Way) -> bool:
        """False where there is none."""
        if self._until.pop(way, None) is None:
            return False
        del self._origins[way]
        ways = self._at[way.address]
        ways.discard(way)
        if not ways:
            del self._at[way.address]
        return True

    def origin(self, way: Way) -> Origin:
        """Of the connection that a hint is there for."""
        return self._origins[way]

    def at(self, address: Point) -> Collection[Way]:
        """Hints for one address."""
        return tuple(self._at.get(address, ()))

    def clear(self) -> Collection[Way]:
        """All hints go; which they were."""
        gone = tuple(self._until)
        self._until.clear()
        self._origins.clear()
        self._at.clear()
        return gone

    def expire(self, now: float) -> None:
        """The kernel's own are over by themselves."""
        while self._until and next(iter(self._until.values())) <= now:
            self.drop(next(iter(self._until)))
        while self._others and next(iter(self._others.values())) <= now:
            del self._others[next(iter(self._others))]
