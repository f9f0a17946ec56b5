"""The home scenario as data: what it draws is in the ranges it may use, and nothing meets by accident."""

from __future__ import annotations

import datetime
import ipaddress
import random

import pytest

from gateway.lab import wiring
from gateway.lab.scenario import home

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
PROGRAMS = {"python": "python", "dnsmasq": "dnsmasq", "ss-server": "ss-server", "xray": "xray", "unbound": "unbound"}
DOCUMENTATION = [
    ipaddress.ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
]


@pytest.mark.parametrize("seed", range(20))
def test_addresses_are_of_documentation_ranges_and_distinct(seed: int) -> None:
    drawn = home.draw(random.Random(seed))
    every = [*drawn.sites, drawn.resolver, drawn.vps]
    addresses = [ipaddress.ip_address(text) for site in every for text in (site.ipv4, site.ipv6)]
    assert len(set(addresses)) == 14
    assert all(any(address in network for network in DOCUMENTATION) for address in addresses)
    inside = (drawn.lan1, drawn.lan2, drawn.lan3, drawn.inner)
    assert len({site.ipv4 for site in inside} | {site.ipv6 for site in inside}) == 8
    for site in inside:
        assert ipaddress.ip_address(site.ipv4) in ipaddress.ip_network(drawn.lan4)
        assert ipaddress.ip_address(site.ipv6) in ipaddress.ip_network(drawn.lan6)
    assert len(drawn.records) == 8
    assert [len(site.names) for site in drawn.sites] == [1, 1, 1, 1, 2]


def test_a_seed_draws_the_same_again() -> None:
    assert home.draw(random.Random(7)) == home.draw(random.Random(7)) != home.draw(random.Random(8))


def test_the_gateway_has_the_routers_addresses_to_itself() -> None:
    drawn = home.draw(random.Random(1))
    made = home.topology(drawn, PROGRAMS, NOW)
    router = next(host for host in made.hosts if host.name == "router")
    assert not router.addresses
    assert not router.routes
    # No forwarding and no router advertisements: what is set concerns the bridge alone.
    assert all(name.startswith("bridge/") for name in router.sysctls)


def test_batches_name_both_namespaces_and_routes_of_both_families() -> None:
    drawn = home.draw(random.Random(1))
    made = home.topology(drawn, PROGRAMS, NOW)
    names = {host.name: f"x-{host.name}" for host in made.hosts}
    links, rest = wiring.batches(made, names)
    assert sum(len(lines) for _, lines in links) == len(made.links) == 13
    router = next(lines for name, lines in links if name == "router")
    assert f"link add name wan mtu 1500 address {drawn.wan_mac} type veth peer name wan mtu 1500 netns x-isp" in router
    lan1 = next(lines for name, lines in rest if name == "lan1")
    assert f"route add default via {drawn.router_lan4}" in lan1
    assert f"route add ::/0 via {drawn.router_lan6}" in lan1
    assert f"addr add {drawn.lan1.ipv6}/64 dev eth0 nodad" in lan1
    assert any(f"peer name eth0 mtu 1500 address {drawn.lan3_mac} netns x-lan3" in line for line in router)


def test_a_second_cable_waits() -> None:
    """The isp's end has its addresses once there is one."""
    drawn = home.draw(random.Random(1))
    made = home.topology(drawn, PROGRAMS, NOW)
    isp = next(host for host in made.hosts if host.name == "isp")
    assert not any("wan2" in line for line in wiring.host_lines(isp, made.links))
    later = wiring.host_lines(isp, (home.second_link(drawn),), first=False)
    assert f"addr add {home.SECOND[1]}/31 dev wan2" in later
    assert not any("route" in line for line in later)


def test_no_uplink_no_cable() -> None:
    drawn = home.draw(random.Random(1))
    with_cable, without = (home.topology(drawn, PROGRAMS, NOW, uplink=uplink) for uplink in (True, False))
    assert set(with_cable.links) - set(without.links) == {home.uplink_link(drawn)}
