"""Topology -> lines for ``ip -batch`` (ip(8)), one batch for each namespace. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.lab.topology import Host, Link, Topology


def link_lines(link: Link, namespaces: Mapping[str, str]) -> list[str]:
    """To be run in the left end's namespace: a veth pair whose other end is born in the right one's."""
    left, right = link.left, link.right

    def end(interface: str, mac: str, mtu: int) -> str:
        return f"name {interface} mtu {mtu}" + (f" address {mac}" if mac else "")

    return [
        f"link add {end(left.interface, left.mac, left.mtu)} type veth "
        f"peer {end(right.interface, right.mac, right.mtu)} netns {namespaces[right.host]}"
    ]


def host_lines(host: Host, links: tuple[Link, ...], *, first: bool = True) -> list[str]:
    """Bridges, addresses, routes of ``host``, whose interfaces of ``links`` exist by now.

    Not ``first``: only what those links need, on a host that is set up already.
    """
    lines = []
    if first:
        lines += ["link set lo up"]
        for bridge in host.bridges:
            lines += [f"link add name {bridge.name} type bridge mcast_snooping 0", f"link set dev {bridge.name} up"]
    mine = [end.interface for link in links for end in (link.left, link.right) if end.host == host.name]
    master = {port: bridge.name for bridge in host.bridges for port in bridge.ports}
    for name in mine:
        lines += [f"link set dev {name} master {master[name]}"] if name in master else []
        lines += [f"link set dev {name} up"]
    # An address or a route whose interface is plugged in later waits for it.
    known = {*mine, *(["lo", *(bridge.name for bridge in host.bridges)] if first else [])}
    for name, addresses in host.addresses.items():
        if name in known:
            lines += [f"addr add {text} dev {name}" + (" nodad" if ":" in text else "") for text in addresses]
    for route in host.routes:
        if route.interface not in known if route.interface else not first:
            continue
        target = "::/0" if route.target == "default6" else route.target
        device = f" dev {route.interface}" if route.interface else ""
        lines.append(f"route add {target} via {route.via}{device}")
    return lines


def batches(topology: Topology, namespaces: Mapping[str, str]) -> tuple[list[tuple[str, list[str]]], ...]:
    """Two rounds of (host, lines): all links, then all else; within a round the order does not matter."""
    links: dict[str, list[str]] = {}
    for link in topology.links:
        links.setdefault(link.left.host, []).extend(link_lines(link, namespaces))
    rest = [(host.name, host_lines(host, topology.links)) for host in topology.hosts]
    return list(links.items()), rest
