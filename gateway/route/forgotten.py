"""What bounded tables had to forget before its time, in a table of fixed size. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Hashable

BUCKETS = 1 << 18
"""2 MB, once there is anything to remember. So many that forgetting takes belief from few others: at 100 keys a second
that each count for ten minutes, from one in five."""


class Forgotten:
    """Keys by hash: a key counts as forgotten until the latest time given for its bucket, so some that never were do
    too. For tables where to forget must not mean to believe."""

    def __init__(self) -> None:
        self._until: array[float] | None = None
        self._salt = hash("salt")  # of this process, so that nobody outside can aim at a bucket
        self.count = 0
        """How many there have been."""

    def add(self, key: Hashable, until: float) -> None:
        self.count += 1
        if self._until is None:
            self._until = array("d", bytes(8 * BUCKETS))
        bucket = hash((key, self._salt)) % BUCKETS
        self._until[bucket] = max(self._until[bucket], until)

    def until(self, key: Hashable) -> float:
        """A time that is over where nothing of the bucket was forgotten."""
        return 0.0 if self._until is None else self._until[hash((key, self._salt)) % BUCKETS]
