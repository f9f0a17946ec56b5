"""What others want the kernel to hold, as frozen data. Pure.

``route.compile`` makes a ``Steering``, the userspace judge's verdicts cut to what a packet shows; ``kernel.nft`` turns
it into chains and maps. Addresses are integers of their family (``int(IPv4Address)``), ranges are inclusive on both
ends, disjoint and sorted.

A packet is classified in four steps, the same for both families::

    where from    forwarded: interface, hardware address, source address -> source class
                  local: socket class (mark bits 27-31) -> source class
    which port    (tcp|udp, destination port) -> profile           rows of the source class, covering 0..65535
    learned       destination in the profile's learned map         -> verdict
    address       destination in the profile's interval map        -> verdict, else the profile's default
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_network
from typing import Literal, NamedTuple, Protocol

from gateway.core.address import IP
from gateway.core.flow import lineage

Family = Literal[4, 6]
Peer = Literal["peers4", "peers6"]
Pause = Literal["all", "paused4", "paused6", "paused_mac"]
LAST_UID = 0xFFFFFFFF
DOT, DOH = 853, 443
"""Ports of DNS over TLS and QUIC, and over HTTPS."""
MOST_LEARNED = 131072
"""Addresses that one learned set holds; the kernel counts those too that are over and not yet cleared away. More have
no room, and go as without a name."""
SHARED: dict[Family, int] = {4: 24, 6: 48}
"""Bits of the prefixes that may be shared by names of different verdicts."""


class Verdict(IntEnum):
    """What becomes of a flow. REJECT answers (TCP reset, ICMP unreachable), DROP is silent. USER: userspace, the
    outbound is certain. SNIFF: userspace, the rules need more than the packet shows."""

    DIRECT = 1
    REJECT = 2
    DROP = 3
    USER = 4
    SNIFF = 5


class Span(NamedTuple):
    """Addresses ``first..last`` have ``verdict``."""

    first: int
    last: int
    verdict: Verdict


class SourceSpan(NamedTuple):
    """Source addresses, or uids, ``first..last`` belong to source class ``number``."""

    first: int
    last: int
    number: int


class PortRow(NamedTuple):
    """Destination ports ``first..last`` of ``network`` go to profile number ``profile``."""

    network: Literal["tcp", "udp"]
    first: int
    last: int
    profile: int


@dataclass(frozen=True, slots=True)
class Profile:
    """One function from destination address to verdict. ``spans4`` / ``spans6`` hold what differs from the default.
    ``learned``: whether names can change a verdict here, so whether the profile needs learned maps."""

    spans4: tuple[Span, ...]
    spans6: tuple[Span, ...]
    default4: Verdict
    default6: Verdict
    learned: bool


@dataclass(frozen=True, slots=True)
class SourceClass:
    """Ports to profiles, for one kind of source."""

    rows: tuple[PortRow, ...]


class Origin(NamedTuple):
    """Source classes of forwarded flows by source address, else ``otherwise``."""

    spans4: tuple[SourceSpan, ...]
    spans6: tuple[SourceSpan, ...]
    otherwise: int


class DeviceRow(NamedTuple):
    """Flows that come in through ``interface`` from hardware address ``mac`` have ``origin``, a number in
    ``Steering.origins``. "" is any other interface, any other address (also none, as on links that are not Ethernet).
    An interface that has rows has one with ``mac`` ""."""

    interface: str
    mac: str
    origin: int


@dataclass(frozen=True, slots=True)
class Steering:
    """Everything the owned table needs to know of the rules.

    ``origins``: of forwarded flows, number 0 where no row of ``devices`` fits. ``local``: source class by socket class
    0..30 (31, our own sockets, never arrives here), else ``unknown``. ``users`` comes before ``local`` and in its place
    where it is not empty: source class by the uid of a local socket, for hosts without the CO-RE programs.
    """

    profiles: tuple[Profile, ...]
    classes: tuple[SourceClass, ...]
    origins: tuple[Origin, ...]
    local: tuple[tuple[int, int], ...]
    unknown: int
    users: tuple[SourceSpan, ...] = ()
    devices: tuple[DeviceRow, ...] = ()

    def origin(self, interface: str, mac: str) -> Origin:
        """Of a forwarded flow."""
        if not any(row.interface == interface for row in self.devices):
            interface = ""
        rows = {row.mac: row.origin for row in self.devices if row.interface == interface}
        return self.origins[rows.get(mac, rows.get("", 0))]


class LearnedChange(NamedTuple):
    """One element of a profile's learned map: ``old`` None = was absent, ``new`` None = delete it.

    ``timeout`` in seconds. A conflict between names is a SNIFF element like any other.
    """

    profile: int
    family: Family
    address: int
    old: Verdict | None
    new: Verdict | None
    timeout: int


class Expression(Protocol):
    """Something that holds for some paths. Two that are equal hold for the same."""

    def search(self, text: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What the cgroup programs look up: each key sets bits of a 64-bit mask, the whole mask selects a socket class.

    ``paths`` are absolute executable paths (hashed by the loader as the program hashes dentries), ``names`` are their
    last components, ``uids`` and ``gids`` numbers (gids match supplementary groups too), ``cgroups`` paths of cgroups
    that set their bits for what is in them or below. ``classes`` maps a mask to a socket class 0..29; a mask that is
    not listed is ``mark.UNKNOWN``.

    ``paths`` say of an executable which ``expressions`` hold too. Of any other, and of every cgroup, userspace says it
    (``judged``, ``placed``) once one of its flows has come there; until then its sockets are ``mark.UNKNOWN`` where it
    could matter.
    """

    paths: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, int], ...] = ()
    uids: tuple[tuple[int, int], ...] = ()
    gids: tuple[tuple[int, int], ...] = ()
    classes: tuple[tuple[int, int], ...] = ((0, 0),)
    expressions: tuple[tuple[Expression, int], ...] = ()
    cgroups: tuple[tuple[str, int], ...] = ()

    @property
    def by_executable(self) -> bool:
        return bool(self.paths or self.names or self.expressions)

    @property
    def by_cgroup(self) -> bool:
        """Cgroups alone are asked for."""
        return bool(self.cgroups) and not (self.by_executable or self.uids or self.gids)

    @property
    def empty(self) -> bool:
        """No program needs to be attached."""
        return not (self.by_executable or self.uids or self.gids or self.cgroups)

    def judged(self, path: str) -> int:
        """Bits of the expressions that hold for an executable."""
        return sum(bits for expression, bits in self.expressions if path and expression.search(path))

    def placed(self, cgroup: str) -> int:
        """Bits of a cgroup and of those above it."""
        listed, mask = dict(self.cgroups), 0
        for path in lineage(cgroup):
            mask |= listed.get(path, 0)
        return mask


def by_user(processes: ProcessPlan, steering: Steering) -> tuple[SourceSpan, ...]:
    """``steering.users`` of a plan that asks for users alone, every uid in it; of any other (), since there the user
    does not decide."""
    if processes.by_executable or processes.gids or processes.cgroups:
        return ()
    classes, local = dict(processes.classes), dict(steering.local)

    def number(mask: int) -> int:
        return local.get(classes.get(mask, -1), steering.unknown)

    masks: dict[int, int] = {}
    for uid, bits in processes.uids:
        masks[uid] = masks.get(uid, 0) | bits
    spans, free = [], 0
    for uid, mask in sorted(masks.items()):
        if free < uid:
            spans.append(SourceSpan(free, uid - 1, number(0)))
        spans.append(SourceSpan(uid, uid, number(mask)))
        free = uid + 1
    if free <= LAST_UID:
        spans.append(SourceSpan(free, LAST_UID, number(0)))
    return tuple(spans)


@dataclass(frozen=True, slots=True)
class Capture:
    """Which packets the owned table looks at, and where it sends them."""

    lans: tuple[str, ...]
    """Interface names; only what enters through them, or starts on this host, is steered."""
    tproxy_port: int
    """Port of the transparent listeners (TCP and UDP, IPv4 and IPv6)."""
    dns_port: int = 0
    """Local port that the LAN's port 53 is redirected to; 0 = DNS is not captured."""
    local: bool = True
    """Steer router-local flows too."""
    one_armed: bool = False
    """The way out leads through a LAN: router-local flows that leave through one are steered."""
    shared: bool = False
    """In a shared prefix a name makes no address direct: the flow is sniffed."""
    hints: bool = False
    """TCP flows like one that was sniffed just now are looked for."""
    dot: bool = True
    """Let clients of the LANs speak DNS over TLS and QUIC (port 853) to the outside."""
    doh: tuple[str, ...] = ()
    """Prefixes at whose port 443 clients of the LANs are refused: servers of DNS over HTTPS."""
    wans: tuple[str, ...] = ()
    """Interfaces of the uplinks; a flow that leaves by none of them costs more look-ups."""
    peers: tuple[Peer, ...] = ()
    """What this host itself begins to the addresses in these sets is direct."""
    paused: tuple[Pause, ...] = ()
    """Whose new flows are direct, whatever the rules say: what the sets of these names hold, or all of them."""


def refuses(capture: Capture, address: IP | None, port: int) -> bool:
    """Whether a flow from a LAN to the outside is refused as one to a resolver."""
    if port == DOT:
        return not capture.dot
    return port == DOH and address is not None and any(address in ip_network(one) for one in capture.doh)


@dataclass(frozen=True, slots=True)
class PortForward:
    """A declared port forward from the uplinks to a LAN host."""

    network: Literal["tcp", "udp"]
    port: int
    to: str
    to_port: int


@dataclass(frozen=True, slots=True)
class Base:
    """The ownerless table: plain router, closed WAN. ``arms`` are among ``lans``, and none of ``wans``."""

    lans: tuple[str, ...]
    wans: tuple[str, ...]
    firewall: bool = True
    """False: input and forward policy belong to somebody else; only masquerade and the clean-up rules remain."""
    fail: Literal["open", "closed", "hold"] = "open"
    forwards: tuple[PortForward, ...] = ()
    open_tcp: tuple[int, ...] = ()
    """Router ports reachable from the uplink (declared)."""
    open_udp: tuple[int, ...] = ()
    arms: tuple[str, ...] = ()
    """Uplinks that are LANs too."""
