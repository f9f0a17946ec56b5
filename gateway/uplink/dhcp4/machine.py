"""The DHCPv4 client's states (RFC 2131 section 4.4, figure 5), without I/O, clock or randomness of its own. Pure.

::

    state       sent                       on                          goes to
    STOPPED     -                          LinkUp, lease remembered    REBOOTING
                                           LinkUp                      INIT
    INIT        - (start delay, NAK pause) deadline                    SELECTING
    SELECTING   DISCOVER 4 8 16 32 64 s    good OFFER, window over     REQUESTING
    REQUESTING  REQUEST 4 8 16 32 s        ACK of the chosen server    BOUND
                                           NAK of the chosen server    INIT after 1 2 4 .. 60 s
                                           silence                     SELECTING
    REBOOTING   REQUEST 4 8 s              ACK                         BOUND
                                           NAK                         INIT after the pause, lease lost
                                           silence                     SELECTING, the lease is used until it ends
    BOUND       -                          T1                          RENEWING
    RENEWING    REQUEST by UDP to the      ACK of that server          BOUND
                server, at half of the     NAK of that server          INIT after the pause, lease lost
                time left, >= 60 s apart   T2                          REBINDING
    REBINDING   REQUEST broadcast, same    ACK                         BOUND
                rule                       NAK                         INIT after the pause, lease lost
    any         -                          LinkDown                    STOPPED, the lease is kept until it ends
                                           expiry                      INIT (STOPPED stays), lease lost
                RELEASE if there is one    Release                     STOPPED, lease lost
                -                          Stop                        STOPPED, the lease stands

``handle`` returns what to do; ``deadline`` says when to come back with a ``Tick``. Every delay of a retransmission is
+-1 s. Whatever the other side sends, at most ``RATE`` packets leave within a minute; one over that counts as lost.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address

from gateway.core.errors import PeerError
from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.codec import BROADCAST_FLAG, Message, Option, Type
from gateway.uplink.dhcp4.lease import Lease, lease_of, server_of, usable

BROADCAST = IPv4Address("255.255.255.255")
RATE = 20
"""Packets a minute, at most."""
NAK_PAUSE = (1, 60)
"""First and longest pause after a NAK, in seconds; it doubles until an ACK comes."""
REQUESTS = 4
"""REQUESTs for one offer, about a minute."""
REBOOT_REQUESTS = 2
RENEW_GAP = 60
MAX_SIZE = 1472
"""Option 57. Below an Ethernet MTU however a server counts its headers."""
PARAMETERS = bytes((
    Option.MASK, Option.CLASSLESS_ROUTE, Option.CLASSLESS_ROUTE_MS, Option.ROUTER, Option.STATIC_ROUTE, Option.DNS,
    Option.HOSTNAME, Option.DOMAIN, Option.SEARCH, Option.MTU, Option.LEASE_TIME, Option.T1, Option.T2,
))  # fmt: skip
"""Option 55. Classless routes stand before router and static routes (RFC 3442)."""


class State(Enum):
    STOPPED = "stopped"
    INIT = "init"
    SELECTING = "selecting"
    REQUESTING = "requesting"
    REBOOTING = "rebooting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"


@dataclass(frozen=True, slots=True)
class Config:
    """``client_id`` and ``vendor_class`` are the options' whole contents, empty = not sent. ``start_delay``: longest
    random wait before the first DISCOVER, seconds (RFC 2131 wants 1..10 s, for a street after a power cut).
    ``collect``: seconds to gather offers after the first; 0 takes the first good one. ``allow`` empty = any server."""

    client_id: bytes = b""
    hostname: str = ""
    vendor_class: bytes = b""
    broadcast: bool = False
    start_delay: float = 1.0
    collect: float = 0.0
    required: frozenset[int] = frozenset()
    allow: frozenset[IPv4Address] = frozenset()
    deny: frozenset[IPv4Address] = frozenset()
    add_router: bool = False


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The link carries. ``remembered`` is a lease out of a file, not yet in use. ``htype`` is the ARP hardware type
    (1 Ethernet; others, as PPP or raw IP, have no ``hardware``)."""

    hardware: bytes
    htype: int = 1
    remembered: Lease | None = None


@dataclass(frozen=True, slots=True)
class LinkDown:
    pass


@dataclass(frozen=True, slots=True)
class Packet:
    """A UDP payload that came to port 68 from ``source``."""

    data: bytes
    source: IPv4Address


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline has passed."""


@dataclass(frozen=True, slots=True)
class Renew:
    """Renew now (BOUND only)."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give the address back and stop."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop, keep the lease."""


Event = LinkUp | LinkDown | Packet | Tick | Renew | Release | Stop


@dataclass(frozen=True, slots=True)
class Send:
    """Send ``data`` from port 68 to port 67. ``raw``: as a link broadcast through the packet socket, else by UDP."""

    data: bytes
    source: IPv4Address
    destination: IPv4Address
    raw: bool


@dataclass(frozen=True, slots=True)
class Listen:
    """What to listen on from now. ``udp``: the address whose port 68 to hold open (so that the kernel never answers
    the server with an ICMP unreachable), None = none; ``deaf``: hold it without reading."""

    raw: bool
    udp: IPv4Address | None
    deaf: bool


@dataclass(frozen=True, slots=True)
class Changed:
    """The lease to use from now; None = none. Comes once a change, renewals included."""

    lease: Lease | None
    reason: str


Command = Send | Listen | Changed


def answer_of(packet: Packet, hardware: bytes, htype: int, xid: int, drop: Callable[[str], None]) -> Message | None:
    """The message in ``packet`` where it answers the host of that hardware address, and its question ``xid``; else
    ``drop`` is told why not."""
    if len(packet.data) > MAX_SIZE:
        drop("oversized")
        return None
    try:
        message = codec.decode(packet.data)
    except PeerError:
        drop("malformed")
        return None
    if message.op != 2 or message.htype != htype or message.hardware != hardware:
        drop("for another host")
    elif message.xid != xid:
        drop("another xid")
    else:
        return message
    return None


@dataclass(slots=True)
class _Offer:
    message: Message
    server: IPv4Address


@dataclass(slots=True)
class Machine:
    """One client on one link. ``random`` gives floats in [0, 1), unpredictable (xids are made of it). ``lease`` is the
    lease in use; ``dropped`` counts packets and options left unused, by reason (a fixed set of reasons)."""

    config: Config
    random: Callable[[], float]
    state: State = State.STOPPED
    lease: Lease | None = None
    deadline: float = math.inf
    dropped: Counter[str] = field(default_factory=Counter)
    hardware: bytes = b""
    htype: int = 1
    _remembered: Lease | None = None
    _offer: _Offer | None = None
    _xid: int = 0
    _began: float = 0.0
    _sent: float = 0.0
    _tries: int = 0
    _pause: float = 0.0
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=RATE))
    _listen: Listen = Listen(False, None, True)
    _out: list[Command] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Command]:
        """What to do about ``event`` at ``now`` (CLOCK_BOOTTIME seconds). Never raises on what a peer sent."""
        self._out = []
        if self.lease is not None and now >= self.lease.expiry:
            self._expire(now)
        match event:
            case LinkUp():
                self._link_up(event, now)
            case Packet():
                self._packet(event, now)
            case Tick():
                if now >= self.deadline:
                    self._tick(now)
            case Renew():
                if self.state is State.BOUND:
                    self._enter(State.RENEWING, now)
            case Release():
                self._release(now)
            case LinkDown() | Stop():
                self._enter(State.STOPPED, now)
        self._settle()
        return self._out

    def forget_sockets(self) -> None:
        """The interface was made anew: the next ``Listen`` is said again whatever it was."""
        self._listen = Listen(False, None, True)

    # Links and timers

    def _link_up(self, event: LinkUp, now: float) -> None:
        if self.hardware and event.hardware != self.hardware and self.lease is not None:
            self._lose("another hardware address")
        self.hardware, self.htype = event.hardware, event.htype
        if event.remembered is not None and now < event.remembered.expiry:
            self._remembered = event.remembered
        if self._candidate is not None:
            self._enter(State.REBOOTING, now)
        else:
            self._init(now, self.random() * self.config.start_delay)

    @property
    def _candidate(self) -> Lease | None:
        return self.lease or self._remembered

    def _init(self, now: float, wait: float) -> None:
        self._enter(State.INIT, now)
        self.deadline = now + wait
        if wait <= 0:
            self._enter(State.SELECTING, now)

    def _enter(self, state: State, now: float) -> None:
        """Go to ``state`` and do what it begins with."""
        self.state = state
        self._tries = 0
        match state:
            case State.STOPPED | State.INIT:
                self._offer = None
                self.deadline = math.inf
            case State.BOUND:
                self.deadline = self.lease.t1 if self.lease else math.inf
            case State.REQUESTING:
                self._transmit(now)
            case _:
                self._offer = None
                self._began = now
                self._xid = int(self.random() * (1 << 32))
                self._transmit(now)

    def _tick(self, now: float) -> None:
        match self.state:
            case State.INIT:
                self._enter(State.SELECTING, now)
            case State.SELECTING if self._offer is not None:
                self._enter(State.REQUESTING, now)
            case State.REQUESTING if self._tries >= REQUESTS:
                self._enter(State.SELECTING, now)
            case State.REBOOTING if self._tries >= REBOOT_REQUESTS:
                self._unconfirmed(now)
            case State.BOUND:
                self._enter(State.RENEWING, now)
            case State.RENEWING if self.lease is not None and now >= self.lease.t2:
                self._enter(State.REBINDING, now)
            case State.STOPPED:
                self.deadline = math.inf
            case _:
                self._transmit(now)

    def _unconfirmed(self, now: float) -> None:
        """Nobody answered INIT-REBOOT: the lease is still ours (RFC 2131 section 3.2 step 4)."""
        if self.lease is None and self._remembered is not None:
            self.lease, self._remembered = self._remembered, None
            self._out.append(Changed(self.lease, "remembered"))
        self._enter(State.SELECTING, now)

    def _expire(self, now: float) -> None:
        self._lose("expired")
        if self.state in (State.BOUND, State.RENEWING, State.REBINDING, State.REBOOTING):
            self._init(now, 0)

    def _lose(self, reason: str) -> None:
        self._remembered = None
        if self.lease is not None:
            self.lease = None
            self._out.append(Changed(None, reason))

    def _release(self, now: float) -> None:
        lease = self.lease
        if lease is not None and self.state is not State.STOPPED:
            options: dict[int, bytes] = {
                Option.MESSAGE_TYPE: bytes((Type.RELEASE,)),
                Option.SERVER_ID: lease.server.packed,
            }
            if self.config.client_id:
                options[Option.CLIENT_ID] = self.config.client_id
            xid = int(self.random() * (1 << 32))
            message = Message(1, xid, self.hardware, options, self.htype, ciaddr=lease.address)
            self._out.append(Send(codec.encode(message), lease.address, lease.server, False))
        self._lose("released")
        self._enter(State.STOPPED, now)

    def _settle(self) -> None:
        """Keep the deadline before the lease's end, and the sockets as the state wants them."""
        if self.lease is not None:
            self.deadline = min(self.deadline, self.lease.expiry)
        raw = self.state not in (State.STOPPED, State.INIT, State.BOUND, State.RENEWING)
        udp = self.lease.address if self.lease is not None else None
        listen = Listen(raw, udp, self.state is not State.RENEWING)
        if listen != self._listen:
            self._listen = listen
            # The new sockets come before what they carry; a RELEASE leaves before its socket closes.
            self._out.insert(0, listen) if udp is not None or raw else self._out.append(listen)

    # Sending

    def _transmit(self, now: float) -> None:
        self._tries += 1
        self.deadline = now + self._gap(now)
        if len(self._times) == RATE and now - self._times[0] < 60:
            self.dropped["own packet over the rate"] += 1
            return
        self._times.append(now)
        lease = self.lease
        renewing = self.state in (State.RENEWING, State.REBINDING)
        if renewing or self._tries == 1:
            self._sent = now
        if renewing and self._tries > 1:
            self._xid = int(self.random() * (1 << 32))
        source = lease.address if renewing and lease is not None else codec.ANY
        unicast = self.state is State.RENEWING and lease is not None
        target = lease.server if unicast and lease is not None else BROADCAST
        message = Message(
            1, self._xid, self.hardware, self._options(), self.htype, int(max(0, now - self._began)),
            BROADCAST_FLAG if self.config.broadcast and not renewing else 0, source,
        )  # fmt: skip
        self._out.append(Send(codec.encode(message), source, target, not unicast))

    def _gap(self, now: float) -> float:
        """Until the next transmission."""
        if self.lease is not None and self.state in (State.RENEWING, State.REBINDING):
            end = self.lease.t2 if self.state is State.RENEWING else self.lease.expiry
            return min(max((end - now) / 2, RENEW_GAP), max(end - now, 0))
        return float(min(2 << self._tries, 64)) + self.random() * 2 - 1

    def _options(self) -> dict[int, bytes]:
        discover = self.state is State.SELECTING
        options: dict[int, bytes] = {Option.MESSAGE_TYPE: bytes((Type.DISCOVER if discover else Type.REQUEST,))}
        if self.config.client_id:
            options[Option.CLIENT_ID] = self.config.client_id
        wanted = self._candidate.address if self._candidate else None
        if self.state is State.REQUESTING and self._offer is not None:
            wanted = self._offer.message.yiaddr
            options[Option.SERVER_ID] = self._offer.server.packed
        if wanted is not None and self.state in (State.SELECTING, State.REQUESTING, State.REBOOTING):
            options[Option.REQUESTED_ADDRESS] = wanted.packed
        options[Option.MAX_SIZE] = MAX_SIZE.to_bytes(2, "big")
        if self.config.vendor_class:
            options[Option.VENDOR_CLASS] = self.config.vendor_class
        if self.config.hostname:
            options[Option.HOSTNAME] = self.config.hostname.encode()
        options[Option.PARAMETERS] = PARAMETERS
        return options

    # Receiving

    def _packet(self, packet: Packet, now: float) -> None:
        if self.state in (State.STOPPED, State.INIT, State.BOUND):
            self._drop("unasked")
            return
        message = answer_of(packet, self.hardware, self.htype, self._xid, self._drop)
        if message is None:
            return
        server = server_of(message, packet.source)
        if server in self.config.deny or (self.config.allow and server not in self.config.allow):
            self._drop("server not allowed")
        else:
            self._judge(message, server, now)

    def _judge(self, message: Message, server: IPv4Address, now: float) -> None:
        """A message for us from a server we may talk to."""
        match message.type, self.state:
            case Type.OFFER, State.SELECTING:
                self._offered(message, server, now)
            case Type.ACK, State.REQUESTING | State.REBOOTING | State.RENEWING | State.REBINDING:
                if not usable(message.yiaddr) or not int(server):
                    self._drop("no address or server")
                elif self._foreign(server):
                    self._drop("foreign server")
                else:
                    self._bind(message, server, now)
            case Type.NAK, State.REQUESTING | State.REBOOTING | State.RENEWING | State.REBINDING:
                if self._foreign(server):
                    self._drop("foreign server")
                else:
                    self._refused(now)
            case _:
                self._drop("unexpected type")

    def _foreign(self, server: IPv4Address) -> bool:
        """REBOOTING and REBINDING ask every server; the other states one."""
        if self.state is State.REQUESTING:
            return self._offer is None or server != self._offer.server
        return self.state is State.RENEWING and (self.lease is None or server != self.lease.server)

    def _offered(self, message: Message, server: IPv4Address, now: float) -> None:
        if not usable(message.yiaddr) or not int(server) or not self.config.required <= message.options.keys():
            self._drop("offer without what is needed")
        elif self._offer is None:
            self._offer = _Offer(message, server)
            if self.config.collect > 0:
                self.deadline = now + self.config.collect
            else:
                self._enter(State.REQUESTING, now)
        elif self._candidate is not None and message.yiaddr == self._candidate.address:
            self._offer = _Offer(message, server)

    def _bind(self, message: Message, server: IPv4Address, now: float) -> None:
        lease = lease_of(message, server, self._sent, self.random, add_router=self.config.add_router, bad=self._drop)
        if now >= lease.expiry:
            self._drop("lease over before it came")
            return
        self.lease, self._remembered, self._pause = lease, None, 0.0
        self._out.append(Changed(self.lease, "renewed" if self.state is not State.REQUESTING else "bound"))
        self._enter(State.BOUND, now)

    def _refused(self, now: float) -> None:
        self._lose("refused")
        self._pause = min(max(self._pause * 2, NAK_PAUSE[0]), NAK_PAUSE[1])
        self._init(now, self._pause)

    def _drop(self, reason: str) -> None:
        self.dropped[reason] += 1
