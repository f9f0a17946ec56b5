"""Whose keys fill a bounded table: at its bound the largest share gives way, not what others hold. Pure.

Clients are told apart by hash, in a fixed number of shares, so that many addresses of one device cost no more than one.
"""

from __future__ import annotations

from collections.abc import Hashable

from gateway.route.item.ipset import Point

SHARES = 256

_SALT = hash("salt")  # of this process, so that nobody outside can aim at another's share


def share_of(client: Hashable) -> int:
    return hash((client, _SALT)) % SHARES


class Shares:
    """Keys of each share in the order they were taken. ``owners``: how many they have together, as they say who use
    this."""

    def __init__(self) -> None:
        self.owners = 0
        self._keys: tuple[dict[Point, None], ...] = tuple({} for _ in range(SHARES))

    def take(self, key: Point, share: int) -> None:
        self._keys[share][key] = None

    def drop(self, key: Point, share: int) -> None:
        del self._keys[share][key]

    def first(self) -> Point:
        """The oldest of the largest share; there must be one."""
        largest = max(self._keys, key=len)
        return next(iter(largest))
