"""Keeps what the gateway has put where others may take it away: the base table, and the ip rule and route that deliver
packets with the routing bit. A firewall that starts anew flushes all tables, systemd-networkd deletes rules that it
does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.core.errors import KernelError
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.kernel.nft.watch import Watch

INTERVAL = 0.25
"""Seconds between two looks (of 5 us where nobody has changed rules), and so between two repairs, should somebody take
it away again each time."""

log = logging.getLogger(__name__)


class Standing:
    """``restore`` makes the table anew, or raises KernelError. ``restored``: times that something was put back;
    ``problem``: why it could not be, for a person. ``run`` is a task of the owner."""

    def __init__(self, watch: Watch, restore: Callable[[], None], netlink: Netlink, monitor: Monitor) -> None:
        self.restored = 0
        self.problem = ""
        self._watch = watch
        self._restore = restore
        self._netlink = netlink
        self._monitor = monitor
        self._rung = True

    async def run(self) -> None:
        """Until cancelled."""
        self._monitor.watch_addresses(self._ring)
        try:
            while True:
                await asyncio.sleep(INTERVAL)
                await self._look()
        finally:
            self._monitor.unwatch(lambda _: None, self._ring)

    def _ring(self) -> None:
        self._rung = True

    async def _look(self) -> None:
        try:
            if not self._watch.whole():
                self._restore()
                self._told("table gateway_base")
            if self._rung and self._netlink.steering:
                self._rung = False
                if await self._netlink.steer():
                    self._told("the ip rule of the routing bit")
            self.problem = ""
        except (KernelError, OSError) as error:  # no file may be opened, the journal's file system is full
            if str(error) != self.problem:
                log.warning("what others took away cannot be put back: %s", error)
            self.problem, self._rung = str(error), True

    def _told(self, what: str) -> None:
        self.restored += 1
        log.warning("%s was taken away or emptied by another program, and is restored", what)
