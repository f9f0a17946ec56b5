"""Names on the way from a name to its addresses: what answers say to ask for next. Pure.

An HTTPS answer may send a client to another name (RFC 9460 sections 2.4.2 and 2.5) whose addresses it then connects to
under the first name; an answer may also end in an alias that a resolver behind us asks for by itself. Who asks for the
target learns addresses of all names that lead to it. ``now`` is in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from gateway.route.forgotten import Forgotten
from gateway.route.shares import share_of

MOST_TOLD = 256
"""Pairs of target and name that one client may have been told of at a time, four full answers; it is told of no more
until some are over. So no client, and no site that it visits, makes the table forget what others were told."""
MOST_TARGETS = 4096
"""At the bound the target named longest ago is forgotten: as long as somebody may go on to it what it resolves to is a
conflict (``doubt``)."""
MOST_NAMES = 16
"""That lead to one target; more are forgotten in the same way."""
MOST_FOUND = 64
"""Looked for one target: with one more the address is a conflict anyway (``learned.MOST_OWNERS``)."""


class Aliases:
    def __init__(self) -> None:
        self._targets: dict[str, dict[str, float]] = {}
        self._forgotten = Forgotten()
        self._told: dict[int, dict[tuple[str, str], float]] = {}
        """By share (``shares``): each pair and when it is over."""
        self.refused = 0

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def bound(self) -> tuple[int, int]:
        """And how often something was forgotten at it, or an answer refused."""
        return MOST_TARGETS, self._forgotten.count + self.refused

    def admit(self, client: Hashable, name: str, targets: Mapping[str, float], now: float) -> bool:
        """``client`` is to be told that ``name`` leads to each of ``targets`` until then. False where it has been told
        of too many."""
        told = self._told.setdefault(share_of(client), {})
        more = {(target, name): until for target, until in targets.items()}
        if len({*told, *more}) > MOST_TOLD:
            for pair in [pair for pair, until in told.items() if until <= now]:
                del told[pair]
            if len({*told, *more}) > MOST_TOLD:
                self.refused += 1
                return False
        for pair, until in more.items():
            told[pair] = max(until, told.get(pair, 0.0))
        return True

    def add(self, target: str, name: str, until: float) -> None:
        """Until then who has asked for ``name`` may go on to ``target``."""
        names = self._targets.pop(target, {})
        if not names and len(self._targets) >= MOST_TARGETS:
            oldest = next(iter(self._targets))
            self._forgotten.add(oldest, max(self._targets.pop(oldest).values()))
        if name not in names and len(names) >= MOST_NAMES:
            self._forgotten.add(target, names.pop(next(iter(names))))
        names[name] = max(until, names.pop(name, 0.0))
        self._targets[target] = names

    def names(self, target: str, now: float) -> set[str]:
        """Names that lead to ``target`` over any number of steps, without itself."""
        found: set[str] = set()
        open_ = [target]
        while open_ and len(found) <= MOST_FOUND:
            for name, until in self._targets.get(open_.pop(), {}).items():
                if until > now and name not in found and name != target:
                    found.add(name)
                    open_.append(name)
        return found

    def doubt(self, names: set[str]) -> float:
        """Until when further names, forgotten here, may lead to one of these."""
        return max(self._forgotten.until(name) for name in names)

    def expire(self, now: float) -> None:
        """Those that are over, if they are among the oldest; all others when they are asked for."""
        while self._targets:
            oldest = next(iter(self._targets))
            names = {name: until for name, until in self._targets[oldest].items() if until > now}
            if names:
                self._targets[oldest] = names
                return
            del self._targets[oldest]
