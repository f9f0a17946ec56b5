"""An output buffer that is used again: what layers encrypt and decrypt into."""

from __future__ import annotations

_LAZY = 32
"""Calls with little data after which a large buffer is given back."""


class Room:
    """Grown to what is needed, given back after a while of small use."""

    __slots__ = ("_small", "_view")

    def __init__(self) -> None:
        self._view = memoryview(bytearray())
        self._small = 0

    def take(self, size: int) -> memoryview:
        """At least ``size`` bytes; what was taken before is overwritten."""
        have = len(self._view)
        if size * 8 < have and have > 16384:
            self._small += 1
        else:
            self._small = 0
        if size > have or self._small > _LAZY:
            self._small = 0
            # Somewhat larger, so that a slightly longer read does not allocate again.
            self._view = memoryview(bytearray(size + size // 8))
        return self._view
