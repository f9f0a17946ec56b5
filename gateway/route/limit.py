"""How many flows one device of the network may hold at once, so that one of them cannot take the gateway from all.

Only flows that reach userspace count; what the kernel forwards is not seen here. A device is a source address.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.core.address import IP
from gateway.core.flow import Network

log = logging.getLogger("gateway.route")

TCP_FLOWS = 4096
UDP_SESSIONS = 2048
QUIET = 60.0
"""Seconds between two log lines about one device."""


class Limit:
    """Counts per device. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float], tcp: int = TCP_FLOWS, udp: int = UDP_SESSIONS) -> None:
        self._clock = clock
        self._most: dict[Network, int] = {"tcp": tcp, "udp": udp}
        self._counts: dict[tuple[Network, IP | str], int] = {}
        self._told: dict[tuple[Network, IP | str], float] = {}

    def enter(self, network: Network, device: IP | str) -> bool:
        """One more; False (and at most one log line a minute) where the device is at its cap."""
        key = (network, device)
        count = self._counts.get(key, 0)
        if count < self._most[network]:
            self._counts[key] = count + 1
            return True
        now = self._clock()
        if now - self._told.get(key, -QUIET) >= QUIET:
            self._told[key] = now
            log.warning("%s has %d %s flows: refusing more", device, count, network)
        return False

    def leave(self, network: Network, device: IP | str) -> None:
        key = (network, device)
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
            self._told.pop(key, None)
