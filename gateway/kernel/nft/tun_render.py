"""A ``Tunnel`` as nft commands on the skeleton ``nft/tun.nft``. Pure.

::

    routes      the kernel's ip rules lead into the device; the table asks them (fib) before a packet is on its way
    redirect    (auto_redirect) the table itself decides, by interface, user, hardware address and destination
    manual      no routes of ours: whoever leads packets into the device
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from gateway.core.address import IP
from gateway.kernel import mark
from gateway.kernel.nft.render import quote
from gateway.kernel.nft.steer_render import ERRORS, MOST, MULTIPATH

NUMBERS = 32
"""Tables of one network namespace: the number of an inbound has five bits of the ct mark."""
PROBE, PROBE_DNS = 0x02000000, 0x04000000
"""Packet marks of a look at the routes, the second one beside the first: for port 53. No packet leaves the table with
them."""
OTHERS = 0xFFFFFFFF & ~mark.BYTE
_ECHO = {4: "icmp type echo-request", 6: "icmpv6 type echo-request"}
_DADDR, _SADDR = {4: "ip daddr", 6: "ip6 daddr"}, {4: "ip saddr", 6: "ip6 saddr"}

Network = IPv4Network | IPv6Network
Elements = dict[str, tuple[str, ...]]
"""Set of the skeleton -> prefixes or ranges as text."""


@dataclass(frozen=True, slots=True)
class Tunnel:
    """What one table does. ``ports``: family -> port of its listeners; ``uids``: ranges as text that are left alone;
    ``here``: whether flows of this host may be taken."""

    device: str
    mode: Literal["manual", "routes", "redirect"]
    families: tuple[int, ...]
    ports: dict[int, int]
    dns_port: int = 0
    include_interface: tuple[str, ...] = ()
    exclude_interface: tuple[str, ...] = ()
    include_mac: tuple[str, ...] = ()
    exclude_mac: tuple[str, ...] = ()
    uids: tuple[str, ...] = ()
    route: tuple[Network, ...] = ()
    exclude: tuple[Network, ...] = ()
    loopback: tuple[IP, ...] = ()
    wanted: bool = False
    unwanted: bool = False
    input_mark: int = 0
    output_mark: int = 0
    strict: bool = False
    here: bool = True
    sets: Elements = field(default_factory=dict)


def table(number: int) -> str:
    return f"inet gateway_tun_{number}"


def mine(number: int) -> int:
    """ct mark of the flows of table ``number``."""
    return mark.TUN | number << mark.SOCKET_SHIFT


def skeleton(text: str, number: int, device: str) -> str:
    """``text`` is ``nft/tun.nft``. Raises ValueError on a bad interface name."""
    text = text.replace("inet gateway_tun {", f"{table(number)} {{").replace('"tun0"', quote(device))
    return text.replace("define MINE = 0x07000000", f"define MINE = {mine(number):#010x}")


def prepare(plan: Tunnel, number: int) -> str:
    """The first transaction, with the skeleton: all that has intervals; nothing leads to it yet. Two are needed because
    rules are valid before such sets hold anything (:mod:`gateway.kernel.nft.diff`). Raises ValueError on a bad
    interface name."""
    chains = {}
    if plan.mode == "redirect":
        chains = {
            "where_from": _where_from(plan), "who": _who(plan), "where_to": _where_to(plan), "beyond": _beyond(plan),
            "echo": _echo(plan, "where_from"), "echo_local": _echo(plan, "who"),
        }  # fmt: skip
    lines = [f"add chain {table(number)} {name}" for name in chains]
    return "\n".join((*lines, *_rules(number, chains))) + "\n" + fill(number, {}, plan.sets)


def switch(plan: Tunnel, number: int) -> str:
    """The second: the skeleton's chains lead there. Raises ValueError on a bad interface name."""
    chains = {
        "deliver": _deliver(plan), "forwarded": _forwarded(plan), "local": _local(plan), "aside": _aside(plan),
        "device_in": _device_in(plan), "device_out": _device_out(plan),
    }  # fmt: skip
    lines = []
    if plan.mode == "redirect" and plan.dns_port:
        lines += [f"add chain {table(number)} {name} {hook}" for name, hook in HOOKS.items()]
        chains |= {"dns": _dns(plan), "dns_local": _dns_local(plan), "input": _input(plan)}
    return "\n".join((*lines, *_rules(number, chains))) + "\n"


def _rules(number: int, chains: Mapping[str, Iterable[str]]) -> Iterator[str]:
    for name, rules in chains.items():
        yield from (f"add rule {table(number)} {name} {rule}" for rule in rules)


HOOKS = {
    "dns": "{ type nat hook prerouting priority dstnat + 1; policy accept; }",
    "dns_local": "{ type nat hook output priority mangle; policy accept; }",
    "input": "{ type filter hook input priority filter - 1; policy accept; }",
}


def fill(number: int, old: Elements, new: Elements) -> str:
    """Commands, for one transaction, after which the sets hold ``new``; "" where they do."""
    lines = []
    for name, elements in new.items():
        if elements == old.get(name, ()):
            continue
        if old.get(name):
            lines.append(f"flush set {table(number)} {name}")
        for start in range(0, len(elements), MOST):
            some = ", ".join(elements[start : start + MOST])
            lines.append(f"add element {table(number)} {name} {{ {some} }}")
    return "\n".join(lines) + "\n" if lines else ""


def _names(interfaces: Iterable[str]) -> str:
    return ", ".join(map(quote, interfaces))


def _deliver(plan: Tunnel) -> Iterator[str]:
    yield MULTIPATH
    for family, port in plan.ports.items():
        way = f"tproxy ip to 127.0.0.1:{port}" if family == 4 else f"tproxy ip6 to [::1]:{port}"
        what = f"meta nfproto ipv{family} meta l4proto {{ tcp, udp }}"
        yield f"{what} {way} meta mark set meta mark | {mark.ROUTE:#010x} accept"
    yield ERRORS
    yield "goto refuse"


def _aside(plan: Tunnel) -> Iterator[str]:
    yield f"meta mark set meta mark | {mark.OWN:#010x} accept" if plan.mode == "routes" else "accept"


def _loopback(plan: Tunnel) -> Iterator[tuple[int, str]]:
    for family in plan.families:
        if some := ", ".join(str(ip) for ip in plan.loopback if ip.version == family):
            yield family, f"{{ {some} }}"


def _device_in(plan: Tunnel) -> Iterator[str]:
    name = quote(plan.device)
    for family, some in _loopback(plan):
        yield f"iifname {name} {_SADDR[family]} {some} accept"
        yield f"{_DADDR[family]} {some} {_into(plan)}"
    if plan.mode == "redirect":
        for family in plan.families:
            yield f'iifname != {{ {name}, "lo" }} ct direction original {_ECHO[family]} goto echo'


def _into(plan: Tunnel) -> str:
    """Into the device: with auto_redirect by the mark, else by the routes that there are."""
    return f"meta mark set {plan.input_mark:#x} accept" if plan.mode == "redirect" else "accept"


def _echo(plan: Tunnel, first: str) -> Iterator[str]:
    yield f"ct mark & {mark.CLASS:#010x} != 0 accept"
    yield "fib daddr type { local, broadcast, multicast, anycast } accept"
    yield from (f"jump {first}", "jump where_to", "jump beyond")
    yield _into(plan)


def _device_out(plan: Tunnel) -> Iterator[str]:
    for family, some in _loopback(plan):
        yield f"{_DADDR[family]} {some} {_into(plan)}"
    if plan.mode == "redirect" and _takes_local(plan):
        for family in plan.families:
            yield f"{_ECHO[family]} goto echo_local"


def _families(plan: Tunnel) -> Iterator[str]:
    """Of a family without an address nothing is taken; where the route is strict nothing goes past us either."""
    for family in {4, 6} - set(plan.families):
        yield f"meta nfproto ipv{family} {'goto refuse' if plan.strict and plan.mode == 'redirect' else 'accept'}"


def _forwarded(plan: Tunnel) -> Iterator[str]:
    if plan.mode == "redirect":
        yield from ("jump where_from", "jump where_to", "jump beyond")
        yield from _families(plan)
        yield "goto take"
        return
    yield from _families(plan)
    name = quote(plan.device)
    if plan.mode == "manual":
        yield f"fib daddr . mark oifname {name} goto take"
        return
    yield from _interfaces(plan)
    # Routes that others have by marks of theirs are not to be asked with one of ours.
    yield f"meta mark & {OTHERS:#010x} != 0 accept"
    yield f"meta mark set meta mark | {PROBE:#010x}"
    yield f"th dport 53 meta mark set meta mark | {PROBE_DNS:#010x}"
    yield f"fib daddr . mark oifname {name} goto take"
    yield f"meta mark set meta mark & {0xFFFFFFFF & ~(PROBE | PROBE_DNS):#010x}"


def _takes_local(plan: Tunnel) -> bool:
    if not plan.here:
        return False
    return "lo" not in plan.exclude_interface and (not plan.include_interface or "lo" in plan.include_interface)


def _local(plan: Tunnel) -> Iterator[str]:
    if plan.mode != "redirect":
        yield f"oifname {quote(plan.device)} goto take_local"
    elif _takes_local(plan):
        yield from ("jump who", "jump where_to", "jump beyond")
        yield from _families(plan)
        yield "goto take_local"


def _interfaces(plan: Tunnel) -> Iterator[str]:
    if plan.include_interface:
        yield f"iifname != {{ {_names(plan.include_interface)} }} accept"
    if plan.exclude_interface:
        yield f"iifname {{ {_names(plan.exclude_interface)} }} accept"


def _where_from(plan: Tunnel) -> Iterator[str]:
    yield from _interfaces(plan)
    if plan.include_mac:
        # A link without hardware addresses: of itself "ether" holds for none of its packets, whatever is asked.
        yield "meta iiftype != ether accept"
        yield f"ether saddr != {{ {', '.join(plan.include_mac)} }} accept"
    if plan.exclude_mac:
        yield f"ether saddr {{ {', '.join(plan.exclude_mac)} }} accept"


def _who(plan: Tunnel) -> Iterator[str]:
    yield f"meta mark {plan.output_mark:#x} accept"
    if plan.uids:
        yield f"meta skuid {{ {', '.join(plan.uids)} }} accept"


def _where_to(plan: Tunnel) -> Iterator[str]:
    for family in plan.families:
        for networks, inside in ((plan.route, "!= "), (plan.exclude, "")):
            if some := ", ".join(str(one) for one in networks if one.version == family):
                yield f"{_DADDR[family]} {inside}{{ {some} }} accept"


def _beyond(plan: Tunnel) -> Iterator[str]:
    for family in plan.families:
        yield f"{_DADDR[family]} @local{family} accept"
        if plan.wanted:
            yield f"{_DADDR[family]} != @wanted{family} accept"
        if plan.unwanted:
            yield f"{_DADDR[family]} @unwanted{family} accept"


def _redirect(plan: Tunnel) -> str:
    keep = f"{~mark.CLASS & 0xFFFFFFFF:#010x}"
    return f"ct mark set ct mark & {keep} | {mark.NAMES:#010x} redirect to :{plan.dns_port}"


def _dns(plan: Tunnel) -> Iterator[str]:
    yield f'iifname {{ {quote(plan.device)}, "lo" }} accept'
    yield "meta l4proto != { tcp, udp } accept"
    yield "th dport != 53 accept"
    yield f"ct mark & {mark.CLASS:#010x} != 0 accept"
    yield from ("jump where_from", "jump where_to")
    for family in plan.families:
        yield f"meta l4proto {{ tcp, udp }} {_SADDR[family]} @local{family} {_redirect(plan)}"


def _dns_local(plan: Tunnel) -> Iterator[str]:
    if not _takes_local(plan):
        return
    yield f"meta mark & {mark.SOCKET:#010x} == {mark.OWN:#010x} accept"
    yield 'oif "lo" accept'
    yield "meta l4proto != { tcp, udp } accept"
    yield "th dport != 53 accept"
    yield f"ct mark & {mark.CLASS:#010x} != 0 accept"
    yield from ("jump who", "jump where_to")
    for family in plan.families:
        yield f"meta nfproto ipv{family} meta l4proto {{ tcp, udp }} {_redirect(plan)}"


def _input(plan: Tunnel) -> Iterator[str]:
    """It serves what was captured and nothing else; what goes to another's address with that port is a flow."""
    yield "ct status dnat accept"
    here = "fib daddr type { local, broadcast, multicast, anycast }"
    yield f"meta l4proto {{ tcp, udp }} th dport {plan.dns_port} {here} drop"
