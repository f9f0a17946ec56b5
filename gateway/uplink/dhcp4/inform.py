"""DHCPINFORM (RFC 2131 sections 3.4 and 4.4.3): the names of a network where somebody else gave us the address. Pure.

Not a part of ``machine``: there is no lease here, so nothing to renew, and the port is another program's by right::

    state     sent               on                        goes to
    STOPPED   -                  Here, carrier and address INIT
    INIT      -                  0..1 s                    ASKING
    ASKING    INFORM, broadcast  ACK                       KNOWN
                                 3 s of silence            PAUSING
    PAUSING   -                  4 8 16 32 64 s after the  ASKING
                                 INFORM, then 15 minutes
    KNOWN     -                  10.8 .. 12 h              ASKING, the pauses begin anew
    any       -                  Here, no carrier          STOPPED
                                 Here, other than before   INIT

Port 68 is open in ASKING only. Names are kept until a later answer, however long it takes, with two exceptions: they go
with the address that asked for them, and where the carrier or the card had changed they go when all the growing pauses
have passed unanswered, since it may be another network. At most ``RATE`` packets leave within a minute.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address

from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.codec import ANY, Message, Option, Type
from gateway.uplink.dhcp4.lease import names_of, reader, server_of
from gateway.uplink.dhcp4.machine import BROADCAST, MAX_SIZE, Listen, Packet, Send, Tick, answer_of

RATE = 6
"""Packets a minute, at most."""
START = 1.0
"""Longest random wait before the first packet, in seconds."""
WINDOW = 3.0
"""Seconds that port 68 is open for an answer; not more than the shortest pause."""
PAUSES = (4, 8, 16, 32, 64)
"""Seconds from one packet to the next, each +-1 s."""
QUIET = 900.0
"""The same once all of them have passed: this network seems to have no server."""
REFRESH = 12 * 3600.0
PARAMETERS = bytes((Option.DNS, Option.DOMAIN, Option.SEARCH))
"""Option 55: what is read, so that a server tells no more."""
CLOSED = Listen(False, None, True)


class State(Enum):
    STOPPED = "stopped"
    INIT = "init"
    ASKING = "asking"
    PAUSING = "pausing"
    KNOWN = "known"


@dataclass(frozen=True, slots=True)
class Names:
    """What a server told ``address``. ``search``: option 119, else option 15. Both lists may be empty."""

    address: IPv4Address
    server: IPv4Address
    dns: tuple[IPv4Address, ...] = ()
    search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Here:
    """The interface as it is now; the same again is no news. ``address`` None: it has none. ``index`` tells an
    interface from one made anew under its name; ``htype`` is the ARP hardware type."""

    address: IPv4Address | None
    carrier: bool
    index: int = 0
    hardware: bytes = b""
    htype: int = 1


@dataclass(frozen=True, slots=True)
class Learned:
    """The names to use from now; None = none. Comes once a change."""

    names: Names | None


Event = Here | Packet | Tick
Command = Send | Listen | Learned


@dataclass(slots=True)
class Inquiry:
    """Asks on one interface. ``random`` gives floats in [0, 1), unpredictable (xids are made of it). ``dropped`` counts
    packets and options left unused, by reason (a fixed set of reasons)."""

    random: Callable[[], float]
    state: State = State.STOPPED
    names: Names | None = None
    deadline: float = math.inf
    dropped: Counter[str] = field(default_factory=Counter)
    _here: Here = Here(None, False)
    _doubted: bool = False
    _xid: int = 0
    _began: float = 0.0
    _next: float = 0.0
    _tries: int = 0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=RATE))
    _out: list[Command] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Command]:
        """What to do about ``event`` at ``now`` (CLOCK_BOOTTIME seconds). Never raises on what a peer sent."""
        self._out = []
        match event:
            case Here():
                if event != self._here:
                    self._moved(event, now)
            case Packet():
                self._packet(event, now)
            case Tick():
                if now >= self.deadline:
                    self._tick(now)
        return self._out

    def _moved(self, here: Here, now: float) -> None:
        self._here = here
        if self.names is not None and self.names.address != here.address:
            self._learn(None)
        self._doubted = self.names is not None
        if here.carrier and here.address is not None:
            self._enter(State.INIT)
            self.deadline = now + self.random() * START
        else:
            self._enter(State.STOPPED)

    def _enter(self, state: State) -> None:
        if self.state is State.ASKING:
            self._out.append(CLOSED)
        if state is not State.PAUSING:
            self._tries = 0
        self.state = state
        self.deadline = self._next if state is State.PAUSING else math.inf

    def _tick(self, now: float) -> None:
        match self.state:
            case State.ASKING:
                if self._doubted and self._tries > len(PAUSES):
                    self._learn(None)
                self._enter(State.PAUSING)
            case State.INIT | State.PAUSING | State.KNOWN:
                self._ask(now)
            case State.STOPPED:
                self.deadline = math.inf

    def _ask(self, now: float) -> None:
        if not self._tries:
            self._began = now
            self._xid = int(self.random() * (1 << 32))
        pause = PAUSES[self._tries] if self._tries < len(PAUSES) else QUIET
        self._tries += 1
        self._next = now + pause + self.random() * 2 - 1
        address = self._here.address
        if address is None or (len(self._times) == RATE and now - self._times[0] < 60):
            self.dropped["own packet over the rate"] += 1
            self._enter(State.PAUSING)
            return
        self._times.append(now)
        self.state = State.ASKING
        self.deadline = now + WINDOW
        options = {
            Option.MESSAGE_TYPE: bytes((Type.INFORM,)), Option.MAX_SIZE: MAX_SIZE.to_bytes(2, "big"),
            Option.PARAMETERS: PARAMETERS,
        }  # fmt: skip
        message = Message(
            1, self._xid, self._here.hardware, {int(code): data for code, data in options.items()}, self._here.htype,
            int(now - self._began), ciaddr=address,
        )  # fmt: skip
        self._out.append(Listen(False, address, False))
        self._out.append(Send(codec.encode(message), address, BROADCAST, False))

    def _packet(self, packet: Packet, now: float) -> None:
        if self.state is not State.ASKING:
            self._drop("unasked")
            return
        here = self._here
        message = answer_of(packet, here.hardware, here.htype, self._xid, self._drop)
        if message is None:
            return
        if message.type != Type.ACK:
            # A NAK too: section 4.3.5 knows none, and there is no lease that it could end.
            self._drop("unexpected type")
        elif {message.ciaddr, message.yiaddr} - {ANY, here.address}:
            # Section 4.3.5 wants yiaddr 0; servers that repeat our own address there mean no harm.
            self._drop("for another address")
        elif here.address is not None:
            dns, domain, search = names_of(reader(message, self._drop))
            server = server_of(message, packet.source)
            self._doubted = False
            self._enter(State.KNOWN)
            self.deadline = now + REFRESH * (0.9 + 0.1 * self.random())
            self._learn(Names(here.address, server, dns, search or ((domain,) if domain else ())))

    def _learn(self, names: Names | None) -> None:
        if names != self.names:
            self.names = names
            self._out.append(Learned(names))

    def _drop(self, reason: str) -> None:
        self.dropped[reason] += 1
