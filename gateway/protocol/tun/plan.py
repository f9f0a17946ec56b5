"""What a tun inbound asks of the kernel: routes, ip rules, the table that takes flows. Pure.

The order of the rules is sing-tun's (0.7.3, tun_linux.go), each with a priority of its own; before them stand what
delivers, what our own sockets pass by, and the looks of the table at the routes. Where it prefers what is
left of everything but ``route_exclude_address`` to the host's own networks, ours do not: the LAN would get no answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, summarize_address_range
from typing import Any, Literal

from gateway.config.fields import as_list
from gateway.core.address import IP
from gateway.kernel import mark
from gateway.kernel.netlink.diff import MAIN, Address, Route, Rule, normal
from gateway.kernel.nft.tun_render import PROBE, PROBE_DNS, Elements, Tunnel
from gateway.protocol.tun.options import LAST_UID, RULES, InboundOptions
from gateway.route.item.ip_cidr import IPCIDR
from gateway.route.item.ipset import IPSet, Range, merged
from gateway.route.match import Sets, items

Network = IPv4Network | IPv6Network
_EVERY: dict[int, Network] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}
_LAST = {4: (1 << 32) - 1, 6: (1 << 128) - 1}


def minus(ranges: Iterable[Range], without: Iterable[Range]) -> tuple[Range, ...]:
    """Inclusive ranges less others."""
    left = list(merged(ranges))
    for first, last in merged(without):
        cut: list[Range] = []
        for one, two in left:
            if last < one or two < first:
                cut.append((one, two))
                continue
            if one < first:
                cut.append((one, first - 1))
            if last < two:
                cut.append((last + 1, two))
        left = cut
    return tuple(left)


def prefixes(family: int, ranges: Iterable[Range]) -> tuple[Network, ...]:
    """Ranges as the fewest prefixes."""
    kind: Any = IPv4Address if family == 4 else IPv6Address
    return tuple(net for first, last in ranges for net in summarize_address_range(kind(first), kind(last)))


def span(network: Network) -> Range:
    return int(network.network_address), int(network.broadcast_address)


def addresses_of(tags: Iterable[str], sets: Sets) -> IPSet:
    """``ip_cidr`` of all rules of these rule sets. Raises KeyError for an unknown tag."""
    found = [item.set for tag in tags for rule in sets[tag] for item in items(rule) if isinstance(item, IPCIDR)]
    return IPSet(
        (one for some in found for one in some.ranges4), (one for some in found for one in some.ranges6)
    )  # fmt: skip


def users(options: InboundOptions) -> tuple[Range, ...]:
    """Users that are left alone."""
    if options.included_uids:
        return minus([(0, LAST_UID)], minus(options.included_uids, options.excluded_uids))
    return merged(options.excluded_uids)


def routed(options: InboundOptions, sets: Sets) -> tuple[Network, ...]:
    """Destinations that the table of the device leads into it; with ``auto_redirect`` all, since what is led there by
    its mark has been chosen."""
    if options.auto_redirect:
        return tuple(_EVERY[family] for family in options.families)
    wanted = [prefix.network for prefix in options.routes]
    unwanted = [span(prefix.network) for prefix in options.excluded]
    found: list[Network] = []
    only, but = _sets(options, sets)
    for family in options.families:
        ranges = [span(net) for net in wanted if net.version == family] + list(only.ranges(family))
        out = [one for one, prefix in zip(unwanted, options.excluded, strict=True) if prefix.ip.version == family]
        left = minus(ranges or [(0, _LAST[family])], [*out, *but.ranges(family)])
        found += prefixes(family, left)
    return tuple(found)


def _sets(options: InboundOptions, sets: Sets) -> tuple[IPSet, IPSet]:
    only, but = as_list(options.route_address_set), as_list(options.route_exclude_address_set)
    return addresses_of(only, sets), addresses_of(but, sets)


def own(options: InboundOptions, device: str) -> tuple[Address, ...]:
    return tuple(Address(device, prefix.ip, prefix.length) for prefix in options.addresses)


def routes(options: InboundOptions, device: str, number: int, sets: Sets) -> tuple[Route, ...]:
    """All on the device, and so gone with it: those that lead into it, and those by which packets with the routing bit
    are delivered."""
    deliver = [
        Route(device, _EVERY[family], table=mark.TUN_TABLE + number, type="local") for family in options.families
    ]
    into = [Route(device, net, table=options.table) for net in routed(options, sets)] if options.auto_route else []
    return tuple(normal(route) for route in (*deliver, *into))


def rules(options: InboundOptions, device: str, number: int, local: bool = True) -> tuple[Rule, ...]:
    """``local``: whether flows of this host are led into the device."""
    return tuple(rule for family in (4, 6) for rule in _rules(options, device, number, local, family))


def priorities(options: InboundOptions) -> range:
    return range(options.rule, options.rule + RULES)


def _rules(
    options: InboundOptions, device: str, number: int, local: bool, family: Literal[4, 6]
) -> Iterator[Rule]:  # fmt: skip
    start, nop = options.rule, options.rule + RULES - 1
    at = iter(range(start, nop))
    past: dict[str, Any] = {"action": "goto", "target": nop}

    def rule(priority: int | None = None, **asked: Any) -> Rule:
        return Rule(family, next(at) if priority is None else priority, proto=mark.TUN_PROTO, **asked)

    if family not in options.families:
        # Of the host's other family nothing is touched (IPv6 may be switched off) but what is to be strict.
        if options.auto_route and options.strict_route and not options.auto_redirect:
            yield rule(mark=mark.ROUTE, mask=mark.ROUTE, **past)
            yield rule(mark=mark.OWN, mask=mark.SOCKET, **past)
            yield from _lifted(options, rule, past, local)
            yield rule(action="unreachable")
            yield rule(nop, action="nop")
        return
    yield rule(mark=mark.ROUTE, mask=mark.ROUTE, table=mark.TUN_TABLE + number)
    if not options.auto_route:
        if family == 6:
            yield rule(oif=device, table=options.table)
        return
    if options.auto_redirect:
        yield rule(mark=options.output_mark, mask=0xFFFFFFFF, **past)
        yield rule(mark=options.input_mark, mask=0xFFFFFFFF, table=options.table)
        yield rule(nop, action="nop")
        return
    yield rule(mark=mark.OWN, mask=mark.SOCKET, **past)
    # What the table asks, by a mark that no packet on its way has: as for a packet that came in through an interface.
    names = PROBE | PROBE_DNS
    # Routes that were asked for come before those that the host has; what is left of "all but" does not.
    asked = bool(options.routes or as_list(options.route_address_set))
    if asked:
        yield rule(mark=PROBE, mask=PROBE, table=options.table, suppress=0)
    yield rule(mark=PROBE, mask=names, table=MAIN, suppress=0)
    yield rule(mark=PROBE, mask=PROBE, table=options.table)
    yield rule(mark=PROBE, mask=PROBE, **past)
    yield from _lifted(options, rule, past, local)
    nets = sorted({str(prefix.network) for prefix in options.addresses if prefix.ip.version == family})
    here = next(at)
    for net in nets:
        yield rule(here, destination=net, table=options.table)
    if asked:
        yield rule(table=options.table, suppress=0)
    yield rule(port=53, invert=True, table=MAIN, suppress=0)
    yield rule(iif=device, **past)
    here = next(at)
    for net in nets:
        yield rule(here, iif="lo", source=net, table=options.table)
    if family == 4:
        yield rule(iif="lo", source="0.0.0.0/32", table=options.table)
    else:
        # A socket that has chosen no address yet asks for none of these.
        for half in ("::/1", "8000::/1"):
            yield rule(iif="lo", source=half, **past)
        yield rule(iif="lo", table=options.table)
    yield rule(iif="lo", invert=True, table=options.table)
    yield rule(nop, action="nop")


def _lifted(options: InboundOptions, rule: Any, past: dict[str, Any], local: bool) -> Iterator[Rule]:
    """Who is not led into the device: users (of flows of this host: of a forwarded one the kernel says it is root's),
    interfaces."""
    ranges = users(options)
    if not local:
        yield rule(iif="lo", **past)
    elif ranges:
        here = rule().priority
        for first, last in ranges:
            yield rule(here, iif="lo", uids=f"{first}-{last}", **past)
    include, exclude = as_list(options.include_interface), as_list(options.exclude_interface)
    if include:
        one = rule().priority
        match = one + 2
        for name in include:
            yield rule(one, iif=name, action="goto", target=match)
        yield rule(**past)
        yield rule(action="nop")
    elif exclude:
        one = rule().priority
        for name in exclude:
            yield rule(one, iif=name, **past)


def tunnel(
    options: InboundOptions, device: str, ports: Mapping[int, int], dns_port: int, local: Iterable[Network], sets: Sets,
    here: bool = True,
) -> Tunnel:  # fmt: skip
    """``local``: networks of this host; ``here``: whether its flows are taken."""
    redirect = options.auto_redirect
    return Tunnel(
        device=device,
        mode="redirect" if redirect else "routes" if options.auto_route else "manual",
        families=options.families,
        ports=dict(ports),
        dns_port=dns_port,
        include_interface=tuple(as_list(options.include_interface)),
        exclude_interface=tuple(as_list(options.exclude_interface)),
        include_mac=tuple(as_list(options.include_mac_address)),
        exclude_mac=tuple(as_list(options.exclude_mac_address)),
        uids=tuple(f"{first}-{last}" if first != last else str(first) for first, last in users(options)),
        route=tuple(collapsed([prefix.network for prefix in options.routes])),
        exclude=tuple(collapsed([prefix.network for prefix in options.excluded])),
        loopback=tuple(options.loopback),
        wanted=redirect and bool(as_list(options.route_address_set)),
        unwanted=redirect and bool(as_list(options.route_exclude_address_set)),
        input_mark=options.input_mark,
        output_mark=options.output_mark,
        strict=options.strict_route,
        here=here,
        sets=local_elements(local) | set_elements(options, sets) if redirect else {},
    )


def collapsed(networks: Sequence[Network]) -> Iterator[Network]:
    """Without those inside others: an anonymous set of nft takes no overlaps."""
    for family in (4, 6):
        found: Any = [net for net in networks if net.version == family]
        yield from collapse_addresses(found)


def local_elements(networks: Iterable[Network]) -> Elements:
    found = tuple(collapsed(list(networks)))
    return {f"local{family}": tuple(str(net) for net in found if net.version == family) for family in (4, 6)}


def set_elements(options: InboundOptions, sets: Sets) -> Elements:
    """Of ``route_address_set`` and ``route_exclude_address_set``. Raises KeyError for an unknown tag."""
    found: Elements = {}
    for name, some in zip(("wanted", "unwanted"), _sets(options, sets), strict=True):
        for family in (4, 6):
            found[f"{name}{family}"] = tuple(map(_text(family), some.ranges(family)))
    return found


def _text(family: int) -> Any:
    kind: type[IP] = IPv4Address if family == 4 else IPv6Address
    return lambda found: str(kind(found[0])) if found[0] == found[1] else f"{kind(found[0])}-{kind(found[1])}"
