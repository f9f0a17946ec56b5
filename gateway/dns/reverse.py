"""Which names our answers gave an address, and which of them each client was told last. Pure.

Bounded: the address that was told longest ago is forgotten first. ``now`` is any steady clock in seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from gateway.core.address import IP

Pair = tuple[IP, IP | None]
"""An address, and the client that was told of it."""

ADDRESSES = 16384
NAMES = 16
"""Of one address (shared hosting has many); the one told longest ago goes first."""
CLIENTS = 65536
"""Pairs of client and address."""
GRACE = 30.0
"""Seconds that a name outlives its TTL: a connection is opened a little after the name was resolved."""


class Reverse:
    def __init__(self) -> None:
        self._names: OrderedDict[IP, dict[str, float]] = OrderedDict()
        self._last: OrderedDict[Pair, str] = OrderedDict()

    def learn(self, name: str, client: IP | None, found: Iterable[IP], ttl: int, now: float) -> None:
        """``client`` was told that ``name`` has the addresses ``found`` for ``ttl`` seconds."""
        until = now + ttl + GRACE
        for ip in found:
            names = self._names.setdefault(ip, {})
            names.pop(name, None)  # to the end
            names[name] = until
            if len(names) > NAMES:
                del names[next(iter(names))]
            self._names.move_to_end(ip)
            self._last[ip, client] = name
            self._last.move_to_end((ip, client))
        while len(self._names) > ADDRESSES:
            self._names.popitem(last=False)
        while len(self._last) > CLIENTS:
            self._last.popitem(last=False)

    def told(self, name: str, client: IP | None, found: Iterable[IP]) -> bool:
        """Whether ``name`` is what ``client`` was told last of each of ``found``."""
        last = self._last
        return all(last.get((ip, client)) == name for ip in found)

    def again(self, name: str, pairs: Iterable[Pair]) -> None:
        """The same clients were told the same within a second: only which name came last may have changed."""
        last = self._last
        for pair in pairs:
            if pair in last:
                last[pair] = name

    def names(self, ip: IP, client: IP, now: float) -> tuple[str, ...]:
        """Names of ``ip`` that still hold: the one that ``client`` was told last, then the others, newest first."""
        names = self._names.get(ip)
        if names is None:
            return ()
        for name in [name for name, until in names.items() if until <= now]:
            del names[name]
        if not names:
            del self._names[ip]
            return ()
        last = self._last.get((ip, client))
        others = tuple(name for name in reversed(names) if name != last)
        return (last, *others) if last in names and last is not None else others
