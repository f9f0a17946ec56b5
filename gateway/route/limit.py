"""How many flows one device of the network may hold at once, so that one of them cannot take the gateway from all.

Only flows that reach userspace count; what the kernel forwards is not seen here. A device is a source address.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable

from gateway.core.address import IP
from gateway.core.flow import Network

log = logging.getLogger("gateway.route")

TCP_FLOWS = 4096
SHARE = 4
"""At most one in so many of the process's descriptors is one device's; a flow takes two."""
UDP_SESSIONS = 2048
QUIET = 60.0
"""Seconds between two log lines about one device."""


def fitting(most: int, each: int) -> int:
    """``most`` flows of ``each`` descriptors, or as many as a device's share of what the process may open holds."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // SHARE // each))


class Limit:
    """Counts per device. ``clock`` gives seconds; 0 flows are as many as fit. ``full``: devices that hold as many as
    they may and wanted more; ``notice`` hears of each that becomes one."""

    def __init__(self, clock: Callable[[], float], tcp: int = 0, udp: int = 0) -> None:
        self._clock = clock
        self._most: dict[Network, int] = {
            "tcp": tcp or fitting(TCP_FLOWS, 2), "udp": udp or fitting(UDP_SESSIONS, 1)
        }  # fmt: skip
        self._counts: dict[tuple[Network, IP | str], int] = {}
        self._told: dict[tuple[Network, IP | str], float] = {}
        self.full: set[tuple[Network, IP | str]] = set()
        self.notice: Callable[[Network, IP | str], None] = lambda network, device: None

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
        if key not in self.full:
            self.full.add(key)
            self.notice(network, device)
        return False

    def leave(self, network: Network, device: IP | str) -> None:
        key = (network, device)
        self.full.discard(key)
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]
            self._told.pop(key, None)
