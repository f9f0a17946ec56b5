"""Answers as they stand this second, by the bytes of the question: what a flood of questions is answered from. Pure.

In front of the cache: nothing is looked into, not even the case of the name. An item lasts until the next TTL of its
answer is due, one second at most; then the cache is asked again, which counts down, ends and tells.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.address import IP
from gateway.dns.reverse import Pair, Reverse

ITEMS = 8192
"""At the bound all are forgotten; the cache has them still."""
LONGEST = 512
"""Bytes of an answer that is kept here."""


class Ready:
    """``clock``: any steady clock in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._clients: dict[bytes, dict[bytes, tuple[bytes, float, str, tuple[Pair, ...]]]] = {}
        self._count = 0
        self.reverse: Reverse | None = None

    def get(self, client: bytes, query: bytes, now: float) -> bytes | None:
        """The answer behind its id for ``query`` behind its id, for the client with that packed address."""
        items = self._clients.get(client)
        if items is None:
            return None
        item = items.get(query)
        if item is None:
            return None
        answer, until, name, pairs = item
        if now >= until:
            return None
        if pairs and self.reverse is not None:
            self.reverse.again(name, pairs)
        return answer

    def keep(
        self, client: IP, query: bytes, answer: bytes, until: float, name: str, found: tuple[IP, ...]
    ) -> None:  # fmt: skip
        """``answer`` to ``query``, both with their ids, was told to ``client`` and stands until ``until``; ``found``
        are addresses it gave ``name``."""
        if len(answer) > LONGEST:
            return
        if self._count >= ITEMS:
            self.clear()
        items = self._clients.setdefault(client.packed, {})
        size = len(items)
        items[query[2:]] = (answer[2:], until, name, tuple((ip, client) for ip in found))
        self._count += len(items) - size

    def clear(self) -> None:
        self._clients.clear()
        self._count = 0
