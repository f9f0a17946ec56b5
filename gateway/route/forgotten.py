"""What bounded tables had to forget before its time, in a table of fixed size. Pure."""

from __future__ import annotations

from collections.abc import Hashable

BUCKETS = 4096


class Forgotten:
    """Keys by hash: a key counts as forgotten until the latest time given for its bucket, so some that never were do
    too. For tables where to forget must not mean to believe."""

    def __init__(self) -> None:
        self._until = [0.0] * BUCKETS
        self._salt = hash("salt")  # of this process, so that nobody outside can aim at a bucket
        self.count = 0
        """How many there have been."""

    def add(self, key: Hashable, until: float) -> None:
        self.count += 1
        bucket = hash((key, self._salt)) % BUCKETS
        self._until[bucket] = max(self._until[bucket], until)

    def until(self, key: Hashable) -> float:
        """A time that is over where nothing of the bucket was forgotten."""
        return self._until[hash((key, self._salt)) % BUCKETS] if self.count else 0.0
