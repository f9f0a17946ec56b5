"""What the kernel's flows have carried, summed over looks at all of them and over the ends that were heard. Pure.

A flow that begins and ends between two looks counts where its end is heard; of one that ended unheard, what it carried
after the last look is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gateway.core.account import Key, Tally
from gateway.kernel.conntrack import NOTHING, Count, Counted

KNOWN = 1 << 16
"""Flows remembered from look to look, some 40 MB; those beyond are left out of the sums."""

FlowKey = tuple[int, int, int]
"""``Counted.key``."""


class _Known(NamedTuple):
    key: Key
    counts: tuple[Count, Count, Count, Count]
    """Up and down the long way, up and down the short way."""


_NEW = (NOTHING,) * 4


class Ledger:
    """``begin``, ``note`` of each flow, ``finish``; ``end`` of a flow at any time. Not for two looks at once."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._known: dict[FlowKey, _Known] = {}
        self._gone: dict[FlowKey, _Known] = {}
        """Not shown by the last look: their ends may be heard yet."""
        self._fresh: dict[FlowKey, _Known] | None = None
        """Of the look that is under way."""
        self._ended: set[FlowKey] = set()
        """Meanwhile: the look may still show them."""

    def begin(self) -> None:
        self._fresh, self._ended = {}, set()

    def note(self, found: Counted, key_of: Callable[[Counted], Key]) -> None:
        """``key_of`` is asked at the flow's first look."""
        key = found.key
        if self._fresh is None or key in self._ended:
            return
        before = self._fresh.get(key) or self._known.get(key)
        if before is None and len(self._fresh) >= KNOWN:
            return
        whose = key_of(found) if before is None else before.key
        self._fresh[key] = self._add(before, whose, found)

    def finish(self, whole: bool) -> None:
        """``whole``: all flows were shown, so the others have ended."""
        fresh, self._fresh = self._fresh or {}, None
        self._gone = {key: one for key, one in self._known.items() if key not in fresh} if whole else {}
        self._known = fresh if whole else {**self._known, **fresh}
        for key in self._ended:
            self._known.pop(key, None)
            self._gone.pop(key, None)
        self._ended = set()

    def end(self, found: Counted, key_of: Callable[[Counted], Key]) -> None:
        """With its last counts."""
        key = found.key
        before = self._known.pop(key, None) or self._gone.pop(key, None)
        if self._fresh is not None:
            self._ended.add(key)
            before = self._fresh.pop(key, before)
        whose = key_of(found) if before is None else before.key
        self._add(before, whose, found)

    def _add(self, before: _Known | None, key: Key, found: Counted) -> _Known:
        counts = found.up or NOTHING, found.down or NOTHING, found.short_up, found.short_down
        old = _NEW if before is None else before.counts
        if before is None or counts != old:
            up, down, short_up, short_down = map(grown, counts, old)
            packets = up.packets + down.packets + short_up.packets + short_down.packets
            self.tally.add(key, int(before is None), up.bytes + short_up.bytes, down.bytes + short_down.bytes, packets)
        return _Known(key, counts)


def grown(now: Count, before: Count) -> Count:
    """A count that fell began anew."""
    if now.packets < before.packets or now.bytes < before.bytes:
        return now
    return Count(now.packets - before.packets, now.bytes - before.bytes)
