"""DHCPINFORM on one interface: ``inform``'s machine on the event loop, with port 68 while it asks, and its clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import SystemRandom

from gateway.uplink.dhcp4.inform import Here, Inquiry, Learned, Names
from gateway.uplink.dhcp4.rim import Rim

log = logging.getLogger(__name__)


class Enquirer:
    """``learned(names)`` is told of each change of names (None: there are none); what it raises is logged. All methods
    return at once. Make it inside a running loop; ``close`` it there."""

    def __init__(
        self,
        interface: str,
        learned: Callable[[Names | None], None],
        mark: int = 0,
        random: Callable[[], float] | None = None,
    ) -> None:
        self.interface = interface
        self.inquiry = Inquiry(random or SystemRandom().random)
        self._learned = learned
        self._rim = Rim(interface, self.inquiry, self._tell, mark)

    def here(self, here: Here) -> None:
        """What the interface is now; may be told as often as one likes."""
        self._rim.do(here)

    def close(self) -> None:
        self._rim.close()

    def _tell(self, news: Learned) -> None:
        try:
            self._learned(news.names)
        except Exception:
            log.exception("%s: subscriber of the names", self.interface)
