"""A ``Steering`` and a ``Capture`` as nft commands on the skeleton ``nft/steer.nft``. Pure.

::

    gG_forwarded / gG_local -> class chain -> profile chain -> learned sets        -> interval map -> default
                               gG_class_N     gG_profile_N     learned4_N_VERDICT     ip4_HASH        to_VERDICT

Chains carry a generation G and are replaced by every reload. Interval maps are named by a hash of their content, so
that equal ones are loaded once; they and the learned sets are objects that a reload keeps.
Rules of the skeleton's own chains have no set with intervals, named or not: see ``diff``.
Names are learned into one set a verdict, not into verdict maps: an element that jumps makes the kernel walk every chain
and interval map of the table to look for loops.
No command names the table's flags: a table that is named without them loses its owner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_network

from gateway.kernel import mark
from gateway.kernel.nft.render import quote
from gateway.kernel.plan import (
    DOH,
    DOT,
    SHARED,
    Capture,
    Family,
    LearnedChange,
    Origin,
    Pause,
    PortRow,
    Profile,
    SourceClass,
    SourceSpan,
    Span,
    Steering,
    Verdict,
)

TABLE = "inet gateway"
CHAINS = {verdict: f"to_{verdict.name.lower()}" for verdict in Verdict}
LEARNED = (Verdict.SNIFF, Verdict.USER, Verdict.DIRECT, Verdict.REJECT, Verdict.DROP)
"""In the order they are looked up; an address is in one of them."""
MULTIPATH = "tcp flags & (fin | syn | rst | ack) == syn reset tcp option mptcp"
"""The listener takes one path: without the option the client asks for no more (RFC 8684 section 3.7). Linux 5.18."""
ERRORS = f"meta l4proto {{ icmp, icmpv6 }} meta mark set meta mark | {mark.ROUTE:#010x} accept"
"""What a router behind the LAN says of packets that userspace sent in somebody else's name (too large, unreachable) is
addressed to that other, and comes to the socket that has the name; else path MTU discovery is blind."""
HINTED = tuple(
    f"{ip} saddr . {ip} daddr . tcp dport @{name} goto to_direct" for ip, name in (("ip", "hint4"), ("ip6", "hint6"))
)
PAUSED: dict[Pause, str] = {
    "all": "", "paused4": "ip saddr @paused4 ", "paused6": "ip6 saddr @paused6 ",
    "paused_mac": "ether saddr @paused_mac ",
}  # fmt: skip
REFUSE = "counter name to_resolver goto refuse"
MASKS: dict[Family, str] = {4: str(IPv4Network((0, SHARED[4])).netmask), 6: str(IPv6Network((0, SHARED[6])).netmask)}
MOST = 1000
"""Elements in one command, which keeps lines readable in an error message."""


@dataclass(frozen=True, slots=True)
class Objects:
    """What the owned table holds beside its skeleton, by name. ``intervals`` maps a name to its elements."""

    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Chain name -> rules."""
    fixed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Chain of the skeleton -> rules."""
    intervals: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    learned: frozenset[str] = frozenset()
    sets: dict[str, frozenset[str]] = field(default_factory=dict)
    """Set of the skeleton -> elements."""


def objects(steering: Steering, capture: Capture, generation: int) -> Objects:
    """Raises ValueError on a bad interface name and on a class or profile that does not exist."""
    intervals: dict[str, tuple[Span, ...]] = {}
    learned: set[str] = set()
    chains: dict[str, tuple[str, ...]] = {}
    for number, profile in enumerate(steering.profiles):
        chains[f"g{generation}_profile_{number}"] = tuple(_profile(number, profile, intervals, learned, capture.shared))
    for number, item in enumerate(steering.classes):
        chains[f"g{generation}_class_{number}"] = tuple(_class(item, generation, len(steering.profiles)))
    for number, origin in enumerate(steering.origins if steering.devices else ()):
        chains[f"g{generation}_origin_{number}"] = tuple(_origin(steering, origin, generation))
    for number, name in enumerate(_interfaces(steering)):
        chains[f"g{generation}_interface_{number}"] = tuple(_interface(steering, name, generation))
    chains[f"g{generation}_forwarded"] = tuple(_forwarded(steering, generation))
    chains[f"g{generation}_local"] = tuple(_local(steering, generation))
    if refused := tuple(_refused(capture)):
        chains[f"g{generation}_refused"] = refused
    sets = {
        "lans": frozenset(quote(name) for name in capture.lans),
        "captured": frozenset({"53"} if capture.dns_port else ()),
        "listeners": frozenset({str(capture.dns_port)} if capture.dns_port else ()),
    }
    return Objects(chains, fixed(steering, capture, generation), intervals, frozenset(learned), sets)


def fixed(steering: Steering, capture: Capture, generation: int) -> dict[str, tuple[str, ...]]:
    """See ``Objects.fixed``. Raises ValueError as ``objects`` does."""
    ours = (f"goto g{generation}_refused",) if any(_refused(capture)) else ()
    return {
        "deliver": (MULTIPATH, _deliver(capture.tproxy_port), ERRORS),
        "within": tuple(_within(capture)),
        "refused": (*_paused(capture, "goto to_direct"), *ours),
        "hinted": HINTED if capture.hints else (),
        "capture": _redirect(capture),
        "forwarded": (f"goto g{generation}_forwarded",),
        "local": tuple(_sent(capture, generation)) if capture.local else (),
    }


def _paused(capture: Capture, *verdicts: str) -> Iterator[str]:
    """Of what is paused, which nobody pays for where nothing is."""
    for name in capture.paused:
        yield from (f"{PAUSED[name]}{verdict}" for verdict in verdicts)


def _redirect(capture: Capture) -> tuple[str, ...]:
    """The entry holds the way to our listener: with its class it is found and deleted when we are gone, else a client
    that uses the same port again would be sent there still. Who is paused has the plain router's names: dnsmasq, or
    whomever he asks."""
    if not capture.dns_port:
        return ()
    keep, to = f"{~mark.CLASS & 0xFFFFFFFF:#010x}", f"redirect to :{capture.dns_port}"
    return (
        *_paused(capture, "fib daddr type != local goto to_direct", "accept"),
        f"meta l4proto {{ tcp, udp }} ct mark set ct mark & {keep} | {mark.NAMES:#010x} {to}",
    )


def interval_name(family: Family, spans: Sequence[Span]) -> str:
    """Name of the interval map with this content."""
    text = ";".join(f"{first:x}-{last:x}={verdict.value}" for first, last, verdict in spans)
    return f"ip{family}_{hashlib.sha256(text.encode()).hexdigest()[:20]}"


@lru_cache(1024)
def learned_name(family: Family, profile: int, verdict: Verdict) -> str:
    """Name of the set of addresses that have ``verdict`` by their names."""
    return f"learned{family}_{profile}_{verdict.name.lower()}"


def text(family: Family, address: int) -> str:
    """An address as nft text."""
    return str(IPv4Address(address) if family == 4 else IPv6Address(address))


def _deliver(port: int) -> str:
    return f"meta l4proto {{ tcp, udp }} tproxy to :{port} meta mark set meta mark | {mark.ROUTE:#010x} accept"


def _within(capture: Capture) -> Iterator[str]:
    """To this host; from a LAN to another, and to itself: inside a bridge (br_netfilter), to a network behind a router
    of the LAN. With one arm such a flow leaves the house. What leaves by an uplink, nearly all, costs one look-up: this
    host's own addresses lead out of no interface."""
    if capture.wans:
        yield f"fib daddr oifname {{ {', '.join(map(quote, capture.wans))} }} return"
    yield "fib daddr type { local, broadcast, multicast, anycast } accept"
    for name in capture.lans:
        others = ", ".join(quote(other) for other in capture.lans if other != name or not capture.one_armed)
        if others:
            yield f"iifname {quote(name)} fib daddr oifname {{ {others} }} accept"


def _refused(capture: Capture) -> Iterator[str]:
    """Raises ValueError on what is no prefix."""
    if not capture.dot:
        yield f"th dport {DOT} {REFUSE}"
    networks = [ip_network(one) for one in capture.doh]
    four = collapse_addresses(one for one in networks if isinstance(one, IPv4Network))
    six = collapse_addresses(one for one in networks if isinstance(one, IPv6Network))
    for daddr, found in (("ip daddr", ", ".join(map(str, four))), ("ip6 daddr", ", ".join(map(str, six)))):
        if found:
            yield f"{daddr} {{ {found} }} th dport {DOH} {REFUSE}"


def _profile(
    number: int, profile: Profile, intervals: dict[str, tuple[Span, ...]], learned: set[str], shared: bool
) -> Iterator[str]:  # fmt: skip
    families: tuple[tuple[Family, tuple[Span, ...], Verdict], ...] = (
        (4, profile.spans4, profile.default4),
        (6, profile.spans6, profile.default6),
    )
    for family, spans, default in families:
        daddr = "ip daddr" if family == 4 else "ip6 daddr"
        if profile.learned:
            for verdict in LEARNED:
                name = learned_name(family, number, verdict)
                learned.add(name)
                if shared and verdict is Verdict.DIRECT:
                    yield f"{daddr} & {MASKS[family]} @shared{family} goto {CHAINS[Verdict.SNIFF]}"
                yield f"{daddr} @{name} goto {CHAINS[verdict]}"
        if spans:
            name = interval_name(family, spans)
            intervals[name] = spans
            yield f"{daddr} vmap @{name}"
        yield f"meta nfproto ipv{family} goto {CHAINS[default]}"


def _class(item: SourceClass, generation: int, profiles: int) -> Iterator[str]:
    for row in item.rows:
        if not 0 <= row.profile < profiles:
            raise ValueError(f"port row names profile {row.profile} of {profiles}")
    targets = {row.profile for row in item.rows}
    if len(targets) == 1 and _covers(item.rows):
        yield f"goto g{generation}_profile_{targets.pop()}"
        return
    # A map a protocol: one with both as its key is looked up at three times the cost (and needs Linux 5.6).
    for network in ("tcp", "udp"):
        rows = [
            f"{_range(row.first, row.last)} : goto g{generation}_profile_{row.profile}"
            for row in item.rows
            if row.network == network
        ]
        if rows:
            yield f"{network} dport vmap {{ {', '.join(rows)} }}"


def _covers(rows: Iterable[PortRow]) -> bool:
    sizes = {"tcp": 0, "udp": 0}
    for row in rows:
        sizes[row.network] += row.last - row.first + 1
    return all(size == 65536 for size in sizes.values())


def _range(first: int | str, last: int | str) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _forwarded(steering: Steering, generation: int) -> Iterator[str]:
    rows = [
        f"{quote(name)} : goto g{generation}_interface_{number}" for number, name in enumerate(_interfaces(steering))
    ]
    if rows:
        yield f"iifname vmap {{ {', '.join(rows)} }}"
    yield from _devices(steering, "", generation)
    yield from _origin(steering, steering.origins[0], generation)


def _interfaces(steering: Steering) -> list[str]:
    return list(dict.fromkeys(row.interface for row in steering.devices if row.interface))


def _interface(steering: Steering, name: str, generation: int) -> Iterator[str]:
    yield from _devices(steering, name, generation)
    other = next(row.origin for row in steering.devices if row.interface == name and not row.mac)
    yield f"goto {_origin_name(steering, other, generation)}"


def _devices(steering: Steering, interface: str, generation: int) -> Iterator[str]:
    """A packet without a hardware address, as from a link that is not Ethernet, goes on to the next line."""
    rows = [
        f"{row.mac} : goto {_origin_name(steering, row.origin, generation)}"
        for row in steering.devices
        if row.mac and row.interface == interface
    ]
    if rows:
        yield f"ether saddr vmap {{ {', '.join(rows)} }}"


def _origin_name(steering: Steering, number: int, generation: int) -> str:
    if not 0 <= number < len(steering.origins):
        raise ValueError(f"no origin {number}: there are {len(steering.origins)}")
    return f"g{generation}_origin_{number}"


def _origin(steering: Steering, origin: Origin, generation: int) -> Iterator[str]:
    families: tuple[tuple[Family, tuple[SourceSpan, ...]], ...] = ((4, origin.spans4), (6, origin.spans6))
    for family, spans in families:
        rows = [
            f"{_range(text(family, first), text(family, last))} : goto {_class_name(steering, generation, number)}"
            for first, last, number in spans
        ]
        if rows:
            yield f"{'ip' if family == 4 else 'ip6'} saddr vmap {{ {', '.join(rows)} }}"
    yield f"goto {_class_name(steering, generation, origin.otherwise)}"


def _sent(capture: Capture, generation: int) -> Iterator[str]:
    """Of flows of this host."""
    if not capture.one_armed:
        arms = {*capture.lans} & {*capture.wans}
        inner = ", ".join(quote(name) for name in capture.lans if name not in arms)
        if inner or not arms:
            yield f"oifname {{ {inner} }} accept" if arms else "oifname @lans accept"
    if "all" in capture.paused:
        yield "goto to_direct"
        return
    for name in capture.peers:
        yield f"{'ip' if name == 'peers4' else 'ip6'} daddr @{name} goto to_direct"
    yield f"goto g{generation}_local"


def _local(steering: Steering, generation: int) -> Iterator[str]:
    users = [
        f"{_range(str(first), str(last))} : goto {_class_name(steering, generation, number)}"
        for first, last, number in steering.users
    ]
    rows = [
        f"{socket << mark.SOCKET_SHIFT:#010x} : goto {_class_name(steering, generation, number)}"
        for socket, number in steering.local
    ]
    if users:
        # A socket without a file has no user here: it goes on to the last line.
        yield f"meta skuid vmap {{ {', '.join(users)} }}"
    elif rows:
        yield f"meta mark & {mark.SOCKET:#010x} vmap {{ {', '.join(rows)} }}"
    yield f"goto {_class_name(steering, generation, steering.unknown)}"


def _class_name(steering: Steering, generation: int, number: int) -> str:
    if not 0 <= number < len(steering.classes):
        raise ValueError(f"no source class {number}: there are {len(steering.classes)}")
    return f"g{generation}_class_{number}"


def interval_commands(name: str, spans: Sequence[Span]) -> Iterator[str]:
    """Make an interval map and fill it."""
    family: Family = 4 if name.startswith("ip4_") else 6
    yield f"add map {TABLE} {name} {{ type ipv{family}_addr : verdict; flags interval; }}"
    for start in range(0, len(spans), MOST):
        rows = ", ".join(
            f"{_range(text(family, first), text(family, last))} : goto {CHAINS[verdict]}"
            for first, last, verdict in spans[start : start + MOST]
        )
        yield f"add element {TABLE} {name} {{ {rows} }}"


def learned_commands(change: LearnedChange) -> Iterator[str]:
    """Add the old (so that it is there, expired or not), delete it, add the new."""
    key = text(change.family, change.address)
    lifetime = f"timeout {max(1, change.timeout)}s"
    if change.old is not None:
        place = f"{TABLE} {learned_name(change.family, change.profile, change.old)}"
        yield f"add element {place} {{ {key} {lifetime} }}"
        yield f"delete element {place} {{ {key} }}"
    if change.new is not None:
        yield f"add element {TABLE} {learned_name(change.family, change.profile, change.new)} {{ {key} {lifetime} }}"
