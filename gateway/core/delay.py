"""How long the last probe of each outbound took. One table a process: groups with a member in common probe it once."""

from __future__ import annotations

from typing import NamedTuple


class Delay(NamedTuple):
    """``milliseconds``, at least 1; ``at``: seconds since 1970."""

    milliseconds: int
    at: float


class Delays:
    """By tag of the outbound that was probed, groups followed down to it. No entry: the last probe failed, or there was
    none. As large as there are outbounds."""

    def __init__(self) -> None:
        self._found: dict[str, Delay] = {}

    def get(self, tag: str) -> Delay | None:
        return self._found.get(tag)

    def put(self, tag: str, delay: Delay) -> None:
        self._found[tag] = delay

    def forget(self, tag: str) -> None:
        self._found.pop(tag, None)
