"""Whether flow offload is worth its price just now. Pure.

The programs cost every packet a little, new connections a thirtieth; they pay off where many large packets pass. Where
the sender is on the same machine, one packet here stands for up to 64 KB on a wire (GSO), and they lose.
"""

from __future__ import annotations

from collections.abc import Mapping

INTERVAL = 0.25
"""Seconds between two looks."""
BULK = 2_500_000
"""Bytes a second that one interface receives (20 Mbit/s): what is below costs a router nothing worth saving."""
LARGE, HUGE = 512, 16384
"""Bytes of such an interface's average packet: short flows and acknowledgements stay below the first, what a wire
carries below the second."""
QUIET = 5.0
"""Seconds without bulk after which it ends."""

Counters = Mapping[str, tuple[int, int]]
"""By interface: bytes and packets received since some time."""


class Demand:
    """Is asked every now and then. In the beginning there is demand, for ``QUIET`` seconds."""

    def __init__(self) -> None:
        self._before: Counters = {}
        self._when = 0.0
        self._until: float | None = None

    def look(self, counters: Counters, now: float) -> bool:
        """``now``: seconds of any steady clock. A counter that fell began anew: it says nothing then."""
        before, since = self._before, now - self._when
        self._before, self._when = counters, now
        if self._until is None or any(
            name in before and _bulk(size - before[name][0], packets - before[name][1], since)
            for name, (size, packets) in counters.items()
        ):
            self._until = now + QUIET
        return now < self._until


def _bulk(size: int, packets: int, seconds: float) -> bool:
    return packets > 0 and size >= BULK * seconds and LARGE * packets <= size < HUGE * packets
