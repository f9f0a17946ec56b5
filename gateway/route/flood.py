"""When a rule that refuses is asked too often to go on answering. Pure.

As sing-box 1.12.12: a ``reject`` rule with method ``default`` and without ``no_drop`` that held more than 50 times in
30 s, this time and those it dropped included, drops. TCP and UDP count together, each rule for itself.
"""

from __future__ import annotations

from collections import deque

ANSWERED = 50
WINDOW = 30.0
"""Seconds."""


class Flood:
    """At most ``ANSWERED`` times of each rule that ever refused. ``now`` is any steady clock in seconds."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}

    def drops(self, rule: int, now: float) -> bool:
        """Count that ``rule`` (its index) refuses once more; True where it says nothing this time."""
        times = self._times.get(rule)
        if times is None:
            times = self._times[rule] = deque(maxlen=ANSWERED)
        full = len(times) == ANSWERED and now - times[0] <= WINDOW
        times.append(now)
        return full
