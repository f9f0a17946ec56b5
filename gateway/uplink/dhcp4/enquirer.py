"""DHCPINFORM on one interface: ``inform``'s machine on the event loop, with port 68 while it asks, and its clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from ipaddress import IPv4Address
from random import SystemRandom

from gateway.uplink.clock import Timer, boottime
from gateway.uplink.dhcp4.inform import Event, Here, Inquiry, Learned, Names
from gateway.uplink.dhcp4.machine import Listen, Packet, Send, Tick
from gateway.uplink.dhcp4.port import Port

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
        self._timer = Timer(lambda: self._do(Tick()))
        self._port = Port(interface, mark, self._received)

    def here(self, here: Here) -> None:
        """What the interface is now; may be told as often as one likes."""
        self._do(here)

    def close(self) -> None:
        self._timer.close()
        self._port.rebind()

    def _received(self, data: bytes, source: IPv4Address) -> None:
        self._do(Packet(data, source))

    def _do(self, event: Event) -> None:
        commands = self.inquiry.handle(event, boottime())
        # First the clock: whatever fails below, the machine goes on.
        self._timer.set(self.inquiry.deadline)
        for command in commands:
            match command:
                case Send():
                    self._port.send(command)
                case Listen():
                    self._port.listen(command)
                case Learned():
                    self._tell(command.names)

    def _tell(self, names: Names | None) -> None:
        try:
            self._learned(names)
        except Exception:
            log.exception("%s: subscriber of the names", self.interface)
