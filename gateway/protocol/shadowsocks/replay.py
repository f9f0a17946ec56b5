"""What was seen already: salts of TCP requests and packet numbers of UDP sessions. Pure.

SIP022: salts are kept for 60 seconds (timestamps may be off by 30 each way); packet numbers in a sliding window.
"""

from __future__ import annotations


class SaltFilter:
    """Two generations of salts, renewed every ``period`` seconds: a salt is known for ``period`` to 2 x ``period``.

    At the bound (``capacity`` in one generation) the older generation is forgotten early: memory stays flat, and only
    who can authenticate that many requests within a period can make it forget.
    """

    __slots__ = ("_capacity", "_fresh", "_old", "_period", "_turned")

    def __init__(self, period: float = 60.0, capacity: int = 65536) -> None:
        self._period = period
        self._capacity = capacity
        self._fresh: set[bytes] = set()
        self._old: set[bytes] = set()
        self._turned = float("-inf")

    def __contains__(self, salt: bytes) -> bool:
        return salt in self._fresh or salt in self._old

    def add(self, salt: bytes, now: float) -> None:
        """Remember a salt whose request verified; ``now`` in seconds. A clock that is set back starts a generation."""
        age = now - self._turned
        if not 0 <= age < self._period or len(self._fresh) >= self._capacity:
            # After a long silence both generations are stale.
            self._old = set() if age >= 2 * self._period else self._fresh
            self._fresh = set()
            self._turned = now
        self._fresh.add(salt)


WINDOW = 2048
"""Packets that may come late, as WireGuard and sing-box allow."""


class Window:
    """Packet numbers of one session: each is accepted once, and none that is ``WINDOW`` or more behind the newest."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._bits = 0

    def check(self, number: int) -> bool:
        """Whether ``number`` would be accepted; changes nothing (the packet may not verify)."""
        behind = self._newest - number
        return behind < 0 or (behind < WINDOW and not self._bits >> behind & 1)

    def add(self, number: int) -> None:
        ahead = number - self._newest
        if ahead >= WINDOW:
            self._bits = 1
        elif ahead > 0:
            self._bits = (self._bits << ahead | 1) & ((1 << WINDOW) - 1)
        else:
            self._bits |= 1 << -ahead
        self._newest = max(self._newest, number)
