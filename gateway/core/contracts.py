"""What the packages promise each other; ``gateway.box`` ties real objects to these names.

Routing asks DNS, DNS dials through outbounds, outbounds resolve names: a cycle of needs, kept out of the imports by
these Protocol classes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeGuard

from gateway.core.account import By, Listing, Total
from gateway.core.address import IP, Address
from gateway.core.delay import Delays
from gateway.core.flow import Device, Flow, Network, Process
from gateway.core.stream import Buffer, PacketConn, Receiver, Stream

if TYPE_CHECKING:
    import asyncio
    from socket import socket

Strategy = Literal["", "prefer_ipv4", "prefer_ipv6", "ipv4_only", "ipv6_only"]


class Inbound(Protocol):
    """Something that flows enter through."""

    tag: str
    type: str

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""

    async def close(self) -> None:
        """Stop accepting; flows that run go on."""


class Outbound(Protocol):
    """Something that flows leave through."""

    tag: str
    type: str
    networks: frozenset[Network]

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        """A stream to ``destination``. Raises DialError, AuthError, PeerError, Rejected."""

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        """A datagram mapping for ``flow.source``; ``destination`` is only its first peer. Raises as connect."""

    async def close(self) -> None:
        """Release pooled connections."""


class Begun(NamedTuple):
    """A connection that was begun without waiting for it."""

    sock: socket
    """Non-blocking, without a layer and without keep-alive, which few flows live to need; the caller owns it. A near
    peer has answered already: then it can be written to at once."""
    patience: float
    """Seconds to wait for that, 0 = any time."""


class Begins(Protocol):
    """An outbound that can dial without being awaited; a method beside those of Outbound."""

    def begin(self, destination: Address, speaking: bool) -> Begun | None:
        """Connect to ``destination``; ``speaking``: first bytes are there to be sent. None where more than connect(2)
        is needed: await ``connect`` then. Raises DialError."""


def begins(outbound: object) -> TypeGuard[Begins]:
    """(isinstance with a Protocol class costs as much as a system call.)"""
    return hasattr(outbound, "begin")


class Echoes(Protocol):
    """An outbound that carries ICMP echo; a method beside those of Outbound."""

    tag: str

    def echo_socket(self, family: int) -> socket:
        """A raw, non-blocking ICMP or ICMPv6 socket that leaves as the outbound's others do; the caller owns it. Raises
        OSError."""


def echoes(outbound: object) -> TypeGuard[Echoes]:
    return hasattr(outbound, "echo_socket")


class Group(Outbound, Protocol):
    """An outbound that stands for one of several."""

    members: tuple[str, ...]

    @property
    def now(self) -> str:
        """Tag of the member in use, for TCP where that makes a difference."""

    def chosen(self, network: Network) -> str:
        """Tag of the member that a flow of ``network`` would leave through now."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after each change of what is chosen."""


class Chooses(Group, Protocol):
    """A group whose member somebody chooses."""

    def select(self, tag: str) -> None:
        """Use member ``tag`` from now on. Raises KeyError where it is none."""


class Probes(Group, Protocol):
    """A group that probes its members and chooses by itself."""

    def start(self) -> None:
        """Flows may come from now on."""

    async def check(self, force: bool = False) -> None:
        """Probe the members, those that were probed within the interval only with ``force``, and choose. Never
        raises."""


def probes(outbound: object) -> TypeGuard[Probes]:
    return hasattr(outbound, "check")


def chooses(outbound: object) -> TypeGuard[Chooses]:
    return hasattr(outbound, "select")


class Outbounds(Protocol):
    """All outbounds and endpoints by tag."""

    def __getitem__(self, tag: str) -> Outbound: ...

    def __contains__(self, tag: object) -> bool: ...

    def leaf(self, tag: str) -> Outbound:
        """Follow groups down to the outbound that would carry a flow now."""

    @property
    def default(self) -> str:
        """Tag of ``route.final``, else of the first outbound, else ``direct``."""


class Resolver(Protocol):
    """The DNS side."""

    async def lookup(self, domain: str, *, server: str = "", strategy: Strategy = "") -> list[IP]:
        """Addresses of ``domain``, best first, through DNS server ``server`` ("" = by the DNS rules). Never from
        fakeip. Raises DialError(stage="resolve")."""

    def hit(self, query: bytes, flow: Flow) -> bytes | None:
        """The answer to a client's wire query where the cache has it: never waits, never raises. None says nothing;
        ``exchange`` answers then."""

    async def exchange(self, query: bytes, flow: Flow) -> bytes | None:
        """The wire answer to a wire query of a client; None = send nothing. Never raises for a bad query: the answer
        is then FORMERR or None. Learned addresses are in the kernel before this returns."""

    def learned(self, address: IP, client: IP) -> tuple[str, ...]:
        """Names that we resolved to ``address``, the one that ``client`` resolved last first."""


class Running(Protocol):
    """One flow that runs, as the router lists it."""

    flow: Flow
    since: float
    """When it began, in seconds of the loop's clock."""

    @property
    def destinations(self) -> tuple[Address, ...]:
        """That userspace carries it to."""

    @property
    def name(self) -> str:
        """Sniffed, or learned from DNS; "" for none."""

    @property
    def rule(self) -> int | None:
        """Index of the rule that decided, -1 for ``final``; None while undecided."""

    @property
    def chain(self) -> tuple[str, ...]:
        """Tags from the rule's outbound through its groups to the one that carries the flow; empty while undecided."""

    @property
    def up(self) -> int:
        """Payload bytes from the client."""

    @property
    def down(self) -> int: ...

    def close(self) -> None: ...


class Router(Protocol):
    """Where inbounds hand their flows over."""

    def route_stream(
        self, flow: Flow, stream: Stream, accepted: Callable[[bool], Awaitable[None]] | None = None
    ) -> None:
        """Take over ``stream``: decide, dial, relay, close. Returns at once; a task owns the flow.

        ``accepted`` is awaited once with True when the outbound is connected (a SOCKS or HTTP inbound sends its reply
        there, before any byte is relayed), with False when it failed. Where it is given and a rule has to sniff, it is
        awaited with True before the client's bytes are waited for, as sing-box does."""

    def route_packet(self, flow: Flow, data: Buffer, reply: Receiver, segment: int = 0) -> None:
        """One datagram from ``flow.source`` to ``flow.destination``.

        Sessions are keyed by (inbound, source, user): the first datagram decides, all later ones of that source go
        through the same mapping. ``reply(data, peer, segment)`` delivers what comes back; the callable of the newest
        packet is used. The data is copied or sent before this returns."""

    def close_packets(self, inbound: str, source: Address) -> None:
        """End the session of that source (a SOCKS UDP association was closed)."""

    def carrier(self, flow: Flow) -> Outbound | None:
        """What would carry a flow of which there is nothing to sniff (an ICMP echo), groups followed down to their
        member; None where userspace itself would answer. Raises Rejected."""

    def flows(self) -> list[Running]:
        """What runs now."""

    def close_flows(self, chosen: Callable[[Running], bool]) -> int:
        """End the flows for which ``chosen`` is true; their number."""


class Accounts(Protocol):
    """What flows and what has passed, in both planes: what every API reads. The kernel is asked when these are called,
    and while somebody watches it tells of flows that end; otherwise it is left alone."""

    async def flows(self, sort: str = "bytes", words: Sequence[str] = (), interval: float = 0.0) -> Listing:
        """Those that run and hold all ``words``, in the order of ``sort``. ``interval``: seconds between two looks that
        rates are made of; 0 = at once and without. Raises GatewayError."""

    async def totals(self, by: By) -> list[Total]:
        """Since the gateway's start, the greatest first. A kernel flow counts once it was looked at, or from its end
        while somebody watched; by ``class`` the kernel's are always whole. Raises GatewayError."""

    def watch(self) -> AbstractContextManager[None]:
        """In the block no kernel flow that begins there is missed by the totals, however short. Blocks may overlap."""


class Edge(Protocol):
    """The thin epoll loop that lives inside the asyncio loop: see gateway.kernel.edge."""

    loop: asyncio.AbstractEventLoop

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Level-triggered registration of ``fd``; ``handler(events)`` is called from the loop. EPOLL* bits."""

    def modify(self, fd: int, events: int) -> None: ...

    def rehandle(self, fd: int, handler: Callable[[int], None]) -> None:
        """Another ``handler`` for what is registered."""

    def remove(self, fd: int) -> None:
        """Idempotent."""

    def forget(self, fd: int) -> None:
        """As ``remove``, one system call cheaper, where ``fd`` is closed next."""

    async def readable(self, sock: socket) -> None: ...

    async def writable(self, sock: socket) -> None: ...


class Leases(Protocol):
    """What the uplinks know of name servers."""

    def servers(self, interface: str = "") -> tuple[IP, ...]:
        """DNS servers of the uplink on ``interface`` ("" or "auto": the elected one); empty while there is none."""

    def search(self, interface: str = "") -> tuple[str, ...]:
        """Search domains (option 119, else 15)."""

    def watch(self, changed: Callable[[], None]) -> None: ...


class LearnedSink(Protocol):
    """The kernel's learned-name maps, as DNS sees them."""

    def learn(
        self, name: str, client: IP, addresses: Iterable[tuple[IP, int]], targets: Iterable[tuple[str, int]] = ()
    ) -> None:
        """``name`` resolved for ``client`` to each (address, TTL in seconds); to what each of ``targets`` (name, TTL)
        resolves it may connect under ``name`` too. The kernel has it when this returns, or the addresses stay
        unlearned (an unlearned address is sniffed, never misrouted). Raises PeerError where the answer says more than
        can be learned: then nothing of it is, and nobody may be given it."""

    def owners(self, address: IP, client: IP) -> tuple[str, ...]:
        """Names by which the kernel judges ``address``, the one that ``client`` resolved last first."""


class Owners(Protocol):
    """Who owns a router-local flow."""

    def find(self, network: Network, source: Address, destination: Address) -> Process | None:
        """The process behind a socket of this host, or None (a forwarded flow)."""


class Guest(NamedTuple):
    """A device that has a lease. ``mac`` and ``name`` lower-case, "" where not known; ``since``: when it was given, or
    first seen by us, ``until``: when it ends (0 = never or not known), in seconds since 1970."""

    mac: str
    name: str
    address: str
    since: int
    until: int


class Guests(Protocol):
    """The devices of the LANs, as the leases tell them."""

    def guests(self) -> list[Guest]:
        """Those whose lease has not ended, in the order of their addresses."""


class Devices(Protocol):
    """Which device of a LAN a flow comes from."""

    def find(self, source: IP) -> Device | None:
        """What is known of the neighbour behind ``source``; None for an address of this host. Never raises."""


class NoDevices:
    """Where none is told from another."""

    def find(self, source: IP) -> Device | None:
        return None


class Store(Protocol):
    """What outlives the process, by kind and key (``experimental.cache_file``). Nothing of it raises; may be used from
    any thread."""

    problem: str
    """Why nothing is stored just now; "" where it is."""

    def get(self, kind: str, key: str) -> bytes | None: ...

    def items(self, kind: str) -> list[tuple[str, bytes]]: ...

    def put(self, kind: str, key: str, value: bytes) -> None: ...

    def delete(self, kind: str, key: str) -> None: ...

    def change(self, entries: Iterable[tuple[str, str, bytes | None]]) -> None:
        """(kind, key, value) all together, None takes it away."""


class Rejections(Protocol):
    """What address rules did not take (``store_rdrc``)."""

    def holds(self, server: str, name: str, kind: int) -> bool:
        """Whether the answer of ``server`` to that question was not taken, as far as that still counts."""

    def add(self, server: str, name: str, kind: int) -> None: ...


class Fakes(Protocol):
    """Addresses that stand for names (DNS server ``fakeip``)."""

    store: Store | None

    def __contains__(self, ip: IP) -> bool:
        """Whether it is one of them, whoever was told of it."""

    def name(self, ip: IP) -> str:
        """What ``ip`` stands for, "" for nothing."""

    def give(self, name: str, version: int) -> tuple[IP | None, Sequence[tuple[str, str, bytes | None]]]:
        """The address of ``name`` in that family, None where there are none, and what ``store`` is to be told before
        anybody is told of it."""


@dataclass(slots=True)
class Wiring:
    """What a constructor of an inbound, outbound or DNS server gets besides its tag and options.

    Filled in two steps by ``gateway.box`` (objects exist before they are all tied): read a member at start or at use,
    never in a constructor. ``mark`` is the SO_MARK of our own sockets, 0 where no ``gateway`` object exists and nothing
    is steered.
    """

    edge: Edge
    router: Router
    resolver: Resolver
    outbounds: Outbounds
    leases: Leases
    owners: Owners
    mark: int = 0
    route: Any = None
    """The RouteOptions of the configuration: default_mark, default_interface, default_domain_resolver."""
    devices: Devices = field(default_factory=NoDevices)
    sets: Any = None
    """Rule set tag to its rules."""
    record: Callable[[dict[str, Any]], None] | None = None
    """Puts the inverse of a step that changes the host into the journal; None where nothing of the host is touched."""
    steers: bool = False
    """A ``gateway`` object stands beside: flows of this host, and of its LANs, are its business."""
    directory: Path = field(default_factory=Path)
    """Where relative paths of the configuration start; known from the beginning, so constructors may read it."""
    fakes: Fakes | None = None
    """None where no DNS server is of type ``fakeip``."""
    rejections: Rejections | None = None
    """None where they are not kept."""
    delays: Delays = field(default_factory=Delays)
    store: Store | None = None
    """None where no ``cache_file`` is enabled. There before anything is made."""


__all__ = [
    "Accounts", "Begins", "Begun", "Chooses", "Devices", "Echoes", "Edge", "Fakes", "Group", "Guest", "Guests",
    "IPv4Address", "IPv6Address", "Inbound", "LearnedSink", "Leases", "NoDevices", "Outbound", "Outbounds", "Owners",
    "Probes", "Rejections", "Resolver", "Router", "Running", "Store", "Strategy", "Wiring", "begins", "chooses",
    "echoes", "probes",
]  # fmt: skip
