"""Which server's answers an address rule did not take, so that it need not be asked again (``store_rdrc``).

Kept by server, name and type for ``lasts`` seconds, in the store too. Bounded: the oldest is forgotten first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from gateway.core.contracts import Store

KIND = "rdrc"
"""Of the store's entries: when each ends, in seconds since 1970."""
MOST = 16384


class Rejections:
    """``clock``: seconds since 1970."""

    def __init__(self, store: Store, lasts: float, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._lasts = lasts
        self._clock = clock
        self._ends: dict[str, float] = {}
        found: list[tuple[float, str]] = []
        for key, raw in store.items(KIND):
            with suppress(ValueError):
                found.append((float(raw), key))
        now = clock()
        self._ends = {key: end for end, key in sorted(found) if now < end <= now + lasts}
        store.change((KIND, key, None) for _, key in found if key not in self._ends)

    def holds(self, server: str, name: str, kind: int) -> bool:
        return self._ends.get(_key(server, name, kind), 0.0) > self._clock()

    def add(self, server: str, name: str, kind: int) -> None:
        key, end = _key(server, name, kind), self._clock() + self._lasts
        self._ends.pop(key, None)
        gone = []
        while len(self._ends) >= MOST:
            gone.append(next(iter(self._ends)))
            del self._ends[gone[-1]]
        self._ends[key] = end
        self._store.change([*((KIND, one, None) for one in gone), (KIND, key, str(end).encode())])


def _key(server: str, name: str, kind: int) -> str:
    return f"{kind} {name} {server}"
