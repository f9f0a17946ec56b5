"""Prefixes whose addresses serve names of different verdicts, as a CDN's do. Pure.

Two such meetings within a day, and the prefix is shared for a day. ``now`` is in seconds of any steady clock.
"""

from __future__ import annotations

from collections.abc import Hashable

from gateway.kernel.plan import SHARED, Family

DAY = 86400
MOST_PREFIXES = 8192
"""Watched, and as many shared; at the bound the one met longest ago is forgotten: only caution is lost, names still
decide."""
MOST_VERDICTS = 4
"""Different ones remembered of one prefix; two tell all there is to tell."""

Prefix = tuple[Family, int]
"""Family and the address with its host bits cleared."""


class _Seen:
    __slots__ = ("met", "verdicts")

    def __init__(self) -> None:
        self.verdicts: dict[Hashable, float] = {}
        self.met = -float(DAY)


class Prefixes:
    def __init__(self) -> None:
        self._seen: dict[Prefix, _Seen] = {}
        self._shared: dict[Prefix, float] = {}
        self._evicted = [0, 0]

    def __len__(self) -> int:
        return len(self._seen)

    @property
    def bound(self) -> tuple[int, int]:
        """And how often something was forgotten at it."""
        return MOST_PREFIXES, self._evicted[0]

    @property
    def shared(self) -> tuple[int, int, int]:
        """How many are, the bound, how often something was forgotten at it."""
        return len(self._shared), MOST_PREFIXES, self._evicted[1]

    def note(self, prefix: Prefix, verdict: Hashable, now: float) -> bool:
        """A name came to an address of ``prefix`` that is judged ``verdict`` by it. True where the prefix is shared
        from now on, for ``DAY`` seconds."""
        seen = self._seen.pop(prefix, None) or _Seen()
        if len(self._seen) >= MOST_PREFIXES:
            del self._seen[next(iter(self._seen))]
            self._evicted[0] += 1
        self._seen[prefix] = seen
        others = any(at > now - DAY for one, at in seen.verdicts.items() if one != verdict)
        seen.verdicts.pop(verdict, None)
        seen.verdicts[verdict] = now
        if len(seen.verdicts) > MOST_VERDICTS:
            del seen.verdicts[next(iter(seen.verdicts))]
        if not others:
            return False
        before, seen.met = seen.met, now
        if before <= now - DAY:
            return False
        self._shared.pop(prefix, None)
        if len(self._shared) >= MOST_PREFIXES:
            del self._shared[next(iter(self._shared))]
            self._evicted[1] += 1
        self._shared[prefix] = now + DAY
        return True

    def holds(self, family: Family, address: int, now: float) -> bool:
        """Whether the prefix of ``address`` is shared."""
        return self._shared.get(prefix_of(family, address), 0.0) > now

    def forget_verdicts(self) -> None:
        """They were those of other rules; what is shared stays so."""
        self._seen.clear()

    def expire(self, now: float) -> None:
        while self._shared and next(iter(self._shared.values())) <= now:
            del self._shared[next(iter(self._shared))]


def prefix_of(family: Family, address: int) -> Prefix:
    host = (32 if family == 4 else 128) - SHARED[family]
    return family, address >> host << host
