"""A pure DHCP machine on the event loop: its clock, its sockets, and what it says to the rest of us."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from gateway.kernel.clock import Timer, boottime
from gateway.uplink.dhcp4.machine import Listen, Packet, Send, Tick
from gateway.uplink.dhcp4.port import Port

Event = TypeVar("Event", contravariant=True)
Word = TypeVar("Word", covariant=True)


class Driven(Protocol[Event, Word]):
    """``machine.Machine`` or ``inform.Inquiry``. ``Word`` is what it says beside ``Send`` and ``Listen``."""

    deadline: float

    def handle(self, event: Event | Packet | Tick, now: float) -> Sequence[Send | Listen | Word]: ...


class Rim(Generic[Event, Word]):
    """Runs ``machine`` on ``interface``; ``told(word)`` gets what is not for a socket. All methods return at once. Make
    it inside a running loop; ``close`` it there."""

    def __init__(
        self, interface: str, machine: Driven[Event, Word], told: Callable[[Word], None], mark: int = 0
    ) -> None:
        self.port = Port(interface, mark, lambda data, source: self.do(Packet(data, source)))
        self._machine = machine
        self._told = told
        self._timer = Timer(lambda: self.do(Tick()))

    def do(self, event: Event | Packet | Tick) -> None:
        commands = self._machine.handle(event, boottime())
        # First the clock: whatever fails below, the machine goes on.
        self._timer.set(self._machine.deadline)
        for command in commands:
            if isinstance(command, Send):
                self.port.send(command)
            elif isinstance(command, Listen):
                self.port.listen(command)
            else:
                self._told(command)

    def close(self) -> None:
        self._timer.close()
        self.port.rebind()
