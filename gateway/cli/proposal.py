"""What ``gateway init`` proposes for the ports that it found, and the commented file that says so. Pure.

::

    router        two ports     uplink by DHCP (or as it stands), LAN with addresses and a DHCP server
    side-router   one port      it is uplink and LAN; the network's own router goes on, devices choose us as gateway
    steering      others route  what comes in from the LANs, and what starts here, is steered; nothing else is touched
    local         one machine   what starts here is steered
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, ip_address, ip_interface
from typing import Any, Literal, get_args

from gateway.core.errors import GatewayError
from gateway.uplink.inventory import Port

Topology = Literal["router", "side-router", "steering", "local"]
Way = Literal["dhcp4", "static", "external"]
TOPOLOGIES: tuple[Topology, ...] = get_args(Topology)
WAYS: tuple[Way, ...] = get_args(Way)
BRIDGE = "br-lan"
OTHERS = re.compile(
    r"docker\d|br-[0-9a-f]{12}$|virbr|vnet|veth[0-9a-f]{6,}|lxc|lxdbr|incusbr|podman|cni|ifb|dummy|vmnet"
)
"""Interfaces that a program keeps for its own guests."""
LANS = (*(f"192.168.{third}.1/24" for third in (8, 18, 28, 38, 48, 58)), "10.88.0.1/24", "172.30.88.1/24")
"""Addresses to choose a LAN's from; the first whose network is none of this host's."""


@dataclass(frozen=True)
class Wish:
    """What a person has said already; empty is ours to choose."""

    topology: str = ""
    uplink: str = ""
    way: str = ""
    lan: tuple[str, ...] = ()
    lan_address: tuple[str, ...] = ()
    address: tuple[str, ...] = ()
    gateway: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Around:
    """What of this host decides beside its ports. ``dns``: servers of resolv.conf that are not this host. ``firewall``:
    who filters here already, "" for nobody. ``named``: the sing-box file beside which ours stands has DNS servers."""

    forwarding: bool = False
    firewall: str = ""
    dns: tuple[str, ...] = ()
    beside: str = ""
    named: bool = False


@dataclass(frozen=True)
class Proposal:
    """``lans``: objects of ``gateway.lans``; ``uplink``: of ``gateway.uplinks``. ``why``: a line for each choice,
    ``notes``: what a person still has to do."""

    topology: Topology
    uplink: dict[str, Any]
    lans: tuple[dict[str, Any], ...] = ()
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())


def candidates(ports: Iterable[Port]) -> list[Port]:
    """Ports that may be an uplink or a LAN: hardware, and what a person makes of it; no port of a bridge."""
    return [port for port in ports if not port.bridge and not OTHERS.match(port.name)]


def uplink_of(ports: Sequence[Port]) -> Port | None:
    """The one with the best default route, else one with an address, else one with carrier, else the first."""

    def rank(port: Port) -> tuple[bool, int, bool, bool, bool]:
        return not port.gateways, port.metric, not port.addresses, port.link != "up", port.kind == "bridge"

    return min(candidates(ports), key=rank, default=None)


def topology_of(ports: Sequence[Port], around: Around) -> tuple[Topology, str]:
    """The likely topology, and why."""
    free = candidates(ports)
    if around.firewall and around.forwarding and len(free) > 1:
        return "steering", f"this host forwards already, and {around.firewall} filters"
    if len(free) > 1:
        return "router", f"there are {len(free)} ports"
    if free and free[0].owner is not None and free[0].owner.program == "NetworkManager":
        return "local", "there is one port, and NetworkManager keeps it"
    return "side-router", "there is one port"


def propose(ports: Sequence[Port], wish: Wish, around: Around) -> Proposal:
    """Raises GatewayError where there is nothing to propose, or a wish names what is not there."""
    if not candidates(ports):
        raise GatewayError("this host has no network port to build on; ports are listed by: gateway init --json")
    guess, reason = topology_of(ports, around)
    topology = next((one for one in TOPOLOGIES if one == (wish.topology or guess)), None)
    if topology is None:
        raise GatewayError(f'no topology "{wish.topology}"; there are: {", ".join(TOPOLOGIES)}')
    why = [f"topology {topology}: {'as asked' if wish.topology else reason}"]
    uplink = named(ports, wish.uplink) if wish.uplink else uplink_of(ports)
    assert uplink is not None
    why.append(f"uplink {uplink.name}: {_because(uplink, wish)}")
    made = {"router": _router, "side-router": _side_router, "steering": _steering, "local": _local}[topology]
    found = made(ports, uplink, wish, around)
    notes = list(found.notes)
    if uplink.owner is not None and "dhcp4" in found.uplink:
        notes.append(f"{uplink.owner} configures {uplink.name}: before the start: {uplink.owner.release}")
    return replace(found, topology=topology, why=(*why, *found.why), notes=tuple(notes))


def named(ports: Iterable[Port], name: str) -> Port:
    """The port of that name; one that is not there yet has nothing. A port of a bridge is none to choose."""
    port = next((port for port in ports if port.name == name), Port(name, 0, "", link="absent"))
    if port.bridge:
        raise GatewayError(f"{name} is a port of the bridge {port.bridge}: name the bridge")
    return port


def _because(port: Port, wish: Wish) -> str:
    if wish.uplink:
        return "as asked"
    if port.gateways:
        return f"the default route leads through it, by {port.gateways[0]}"
    return "it has an address" if port.addresses else "it has carrier" if port.link == "up" else "the first port"


def way_of(port: Port, wish: Wish) -> Way:
    """How the uplink gets its addresses."""
    chosen = next((one for one in WAYS if one == wish.way), None)
    if wish.way and chosen is None:
        raise GatewayError(f'no kind of uplink "{wish.way}"; there are: {", ".join(WAYS)}')
    if chosen is None and wish.address:
        chosen = "static"
    if chosen is None:
        # What stands for ever was written by a person, or by a program that we cannot see.
        lasting = [one for one in port.addresses if one not in port.dynamic and port.gateways]
        chosen = "external" if port.owner is not None or lasting else "dhcp4"
    return chosen


def _uplink(port: Port, way: Way, wish: Wish, around: Around) -> dict[str, Any]:
    if way == "external":
        return {"interface": port.name, "external": True}
    if way == "dhcp4":
        return {"interface": port.name, "dhcp4": {}}
    # Addresses of IPv6 that a router's advertisements have made come again by themselves.
    address = list(wish.address or [one for one in port.addresses if one not in port.dynamic])
    address = address or [one for one in port.addresses if ip_interface(one).version == 4]
    if not address:
        raise GatewayError(f"{port.name} has no address: give it with --address 192.168.1.2/24 --gateway 192.168.1.1")
    versions = {ip_interface(one).version for one in address}
    gateways = [one for one in wish.gateway or port.gateways if ip_address(one.partition("%")[0]).version in versions]
    static = {"address": address, "gateway": _first_of_each(gateways)}
    dns = list(wish.dns or around.dns) or [one for one in static["gateway"] if not ip_address(one).is_link_local]
    return {"interface": port.name, "static": {**static, "dns": dns}}


def _first_of_each(addresses: Iterable[str]) -> list[str]:
    found: dict[int, str] = {}
    for one in addresses:
        found.setdefault(ip_address(one).version, one)
    return list(found.values())


def _router(ports: Sequence[Port], uplink: Port, wish: Wish, around: Around) -> Proposal:
    rest = [port for port in candidates(ports) if port.name != uplink.name]
    # A bridge that stands is a LAN more often than a single port is, and one with a cable more often than one without.
    rest.sort(key=lambda port: (port.kind != "bridge", port.link != "up"))
    names = wish.lan or tuple(port.name for port in rest[:1])
    if not names:
        raise GatewayError(
            f"a router has two ports, and here is {uplink.name} alone: --lan names one that comes later "
            "(of a USB adapter), --topology side-router does with one"
        )
    chosen = [named(ports, name) for name in names]
    if uplink.name in names:
        raise GatewayError(f"{uplink.name} is the uplink: a LAN is another port (one port: --topology side-router)")
    addresses = wish.lan_address or (_free(ports),)
    lan: dict[str, Any] = {"interface": names[0] if len(names) == 1 else BRIDGE}
    if len(names) > 1:
        lan["ports"] = list(names)
    lan["address"] = list(addresses)
    first = next((one for one in map(_interface, addresses) if isinstance(one, IPv4Interface)), None)
    if first is not None and (pool := pool_of(first)):
        lan["dhcp_server"] = {"range": pool}
    why = f"lan {', '.join(names)}: {'as asked' if wish.lan else _state(chosen[0])}; address {', '.join(addresses)}"
    notes = [f"{port.owner} configures {port.name}: before the start: {port.owner.release}"
             for port in chosen if port.owner is not None]  # fmt: skip
    return Proposal("router", _uplink(uplink, way_of(uplink, wish), wish, around), (lan,), (why,), tuple(notes))


def _state(port: Port) -> str:
    return "a bridge" if port.kind == "bridge" else "it has carrier" if port.link == "up" else port.link


def _interface(text: str) -> IPv4Interface | IPv6Interface:
    try:
        return ip_interface(text)
    except ValueError as error:
        raise GatewayError(f"--lan-address: {error}; write it as 192.168.8.1/24") from None


def _free(ports: Iterable[Port]) -> str:
    taken = [ip_interface(one).network for port in ports for one in port.addresses]
    taken += [ip_interface(gateway).network for port in ports for gateway in port.gateways if "%" not in gateway]
    fours = [one for one in taken if isinstance(one, IPv4Network)]
    free = (one for one in LANS if not any(ip_interface(one).network.overlaps(net) for net in fours))
    return next(free, LANS[0])


def pool_of(address: IPv4Interface) -> list[str]:
    """First and last address for leases; [] where the network has no room. The hundred of .100 to .199 in a /24, the
    upper half of a smaller one, without this router's own."""
    network = address.network
    if network.prefixlen > 29:
        return []
    if network.prefixlen <= 24:
        first, last = int(network[0]) + 100, int(network[0]) + 199
    else:
        first, last = int(network[network.num_addresses // 2]), int(network[-2])
    own = int(address.ip)
    if first <= own <= last:
        first, last = (own + 1, last) if last - own > own - first else (first, own - 1)
    return [str(IPv4Network(first)[0]), str(IPv4Network(last)[0])]


def _side_router(ports: Sequence[Port], uplink: Port, wish: Wish, around: Around) -> Proposal:
    way = way_of(uplink, wish)
    if not wish.way and uplink.owner is None:
        # Devices are told our address by hand: it must stay, and a lease may not.
        way = "static"
    mine = wish.address or uplink.addresses
    here = next((ip_interface(one).ip for one in mine if ip_interface(one).version == 4), None)
    notes = [f"on a device that is to go through this one: gateway and name server {here or 'this host'}"]
    if way == "external" and any(one in uplink.dynamic for one in uplink.addresses if ":" not in one):
        notes.append(f"{uplink.name} has its address by DHCP: let the main router give it the same one always")
    notes.append("the main router goes on as DHCP server and router: nothing is changed there")
    return Proposal("side-router", _uplink(uplink, way, wish, around), ({"interface": uplink.name},), (), tuple(notes))


def _steering(ports: Sequence[Port], uplink: Port, wish: Wish, around: Around) -> Proposal:
    rest = [port for port in candidates(ports) if port.name != uplink.name]
    lans = [port for port in rest if port.addresses and not port.gateways] or rest[:1]
    names = wish.lan or tuple(port.name for port in lans)
    if not names:
        raise GatewayError(f"beside {uplink.name} there is no LAN to steer: --lan names it, or --topology local")
    for name in names:
        named(ports, name)
    why = f"lan {', '.join(names)}: {'as asked' if wish.lan else 'it has an address, and no default route'}"
    notes = () if around.firewall else ("nobody seems to filter or to translate here: --topology router would",)
    return Proposal("steering", {"interface": uplink.name, "external": True},
                    tuple({"interface": name} for name in names), (why,), notes)  # fmt: skip


def _local(ports: Sequence[Port], uplink: Port, wish: Wish, around: Around) -> Proposal:
    return Proposal("local", {"interface": uplink.name, "external": True})


# -- the file

HEADS = {
    "router": "A router: one way out, and a network behind it.",
    "side-router": "One port in a network that has a router already. Devices that have this host as their gateway go "
    "through it;\n// what comes back does too (both families are translated), and nobody is told of the shorter way.",
    "steering": "Others route, translate and filter here. What comes from the LANs, and what starts here, is steered.",
    "local": "A plain machine: what starts here is steered; nothing is forwarded.",
}
WAY_NOTES = {
    "dhcp4": 'by DHCP. Others: "static": {"address": [...], "gateway": [...], "dns": [...]}, or "external": true',
    "static": "with addresses, next hops and name servers of its own",
    "external": "configured by another program: its addresses, routes and name servers are followed",
}


def file(proposal: Proposal, around: Around) -> str:
    """The configuration, with comments. It stands beside ``around.beside`` where that is not empty, else alone."""
    where = f"gateway run -c {around.beside} -c THIS" if around.beside else "gateway run -c THIS"
    lines = [
        f"// {HEADS[proposal.topology]}",
        f"// Judge it: {where.replace('run', 'check', 1)}; start it: sudo {where}",
    ]
    lines += [f"// To do: {note}" for note in proposal.notes]
    lines.append("{")
    if not around.named:
        kind = "local" if "external" in proposal.uplink else "dhcp"
        said = "what this host asks itself" if kind == "local" else "the servers of the uplink"
        lines += [f"  // Who is asked for names: {said}. Flows are told by the names that were asked for.",
                  f'  "dns": {{"servers": [{{"type": "{kind}", "tag": "names"}}]}},']  # fmt: skip
    if not around.beside:
        lines += ["  // sing-box's own language: proxies stand here, and in \"route\" what goes through them.",
                  '  "outbounds": [{"type": "direct", "tag": "direct"}],',
                  '  "route": {"rules": [], "final": "direct"},']  # fmt: skip
    way = next(one for one in WAYS if one in proposal.uplink)
    lines += ['  "gateway": {', f"    // The way out, {WAY_NOTES[way]}.", '    "uplinks": [']
    lines += [f"      {json.dumps(proposal.uplink)}", "    ],"]
    lines += _lans(proposal)
    if proposal.topology in ("steering", "local"):
        lines += ["    // Input and forward policy belong to others here.", '    "firewall": false,']
    if proposal.topology == "router":
        example = '"forwards": [{"network": "tcp", "port": 8080, "to": "192.168.8.10", "to_port": 80}],'
        lines.append("    // The uplink lets nothing in but answers. A port of this host, or of one behind it:")
        lines += ['    // "open_tcp": [22],', f"    // {example}"]
    lines += ["    // When the gateway is gone: open (online, direct), closed, hold: see docs/failure.md.",
              '    "fail": "open"', "  }", "}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _lans(proposal: Proposal) -> list[str]:
    said = {
        "router": "The network behind us: its addresses, its names, its leases",
        "side-router": "The same port: its devices may have us as gateway. No leases are given here",
        "steering": "Networks that others serve: without an address nothing is set there",
    }
    if not proposal.lans:
        return []
    rows = [f"      {json.dumps(lan)}" for lan in proposal.lans]
    return [f"    // {said[proposal.topology]}.", '    "lans": [', ",\n".join(rows), "    ],"]
