"""Topology "steering": somebody else has the addresses, routes, translates and filters; we steer, and touch nothing."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from .house import DIRECT, FAMILIES, KINDS, LAN, PROXIED, SERVER, SERVER1, SITE, THEIRS, WAN, WAN1, House
from .neighbour import EVERY, Neighbour

pytestmark = pytest.mark.root
OTHERS = [one for one in EVERY if one.name in ("docker", "fw4")]
CLIENT6 = "2001:db8:1::2"


def settings(house: House) -> dict[str, str]:
    """What the other one has made."""
    words = {"addresses": "ip -j addr", "routes": "ip route; ip -6 route", "sysctls": "sysctl -a -r forward"}
    found = {name: house.gateway.run(["sh", "-c", line]).out for name, line in words.items()}
    rows = json.loads(found["addresses"])
    found["addresses"] = str(sorted((row["ifname"], one["local"], one["prefixlen"]) for row in rows
                                    for one in row["addr_info"] if one["scope"] == "global"))  # fmt: skip
    return found


@pytest.fixture(
    params=[
        pytest.param(
            one, id=one.name, marks=[pytest.mark.peer("iptables-nft"), pytest.mark.slow] if one.firewall else []
        )
        for one in OTHERS
    ]
)  # fmt: skip
def other(house: House, request: pytest.FixtureRequest) -> Iterator[tuple[House, dict[str, str]]]:
    neighbour: Neighbour = request.param
    lines = [f"ip addr add {LAN[4]}/24 dev br-lan", f"ip addr add {LAN[6]}/64 dev br-lan nodad"]
    for name, own, via, metric in (("wan0", WAN, SERVER, 100), ("wan1", WAN1, SERVER1, 200)):
        lines += [f"ip addr add {own[4]}/25 dev {name}", f"ip addr add {own[6]}/64 dev {name} nodad"]
        lines += [
            f"ip route replace default via {via[4]} metric {metric}",
            f"ip -6 route replace default via {via[6]} metric {metric}",
        ]
    forwarding = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
    house.lines(*(f"sysctl -qw {name}=1" for name in forwarding), *lines)
    out = house.beside(neighbour)
    try:
        before = settings(house)
        uplinks = [{"interface": "wan0", "external": True}, {"interface": "wan1", "external": True, "priority": 20}]
        house.up(uplinks=uplinks, lans=[{"interface": "br-lan"}], firewall=False, forwards=[], open_tcp=[], open_udp=[])
        with closing(house):
            house.lines(*house.remedies("foreign-policies"))
            yield house, before
        assert settings(house) == before
    finally:
        out()
        for name in ("wan0", "wan1", "br-lan"):
            house.lines(f"ip addr flush dev {name} scope global", f"ip -6 addr flush dev {name} scope global")
        house.lines(*(f"sysctl -qw {name}=0" for name in forwarding))


def test_flows_are_steered_and_all_else_is_theirs(other: tuple[House, dict[str, str]]) -> None:
    house, before = other
    assert settings(house) == before
    for kind in KINDS:
        for family in FAMILIES:
            direct = WAN[4] if family == 4 else CLIENT6
            assert house.ask(kind, house.client, DIRECT[family]) == f"server {direct}"
            assert house.ask(kind, house.gateway, DIRECT[family]) == f"server {WAN[family]}"
            for host in (house.client, house.gateway):
                seen = house.ask(kind, host, PROXIED[family])
                assert seen.startswith("server ")
                assert seen.split()[1] not in (WAN[family], direct), "the proxy dialled"
    assert ("udp", 67) not in house.gateway.listeners()
    assert "dnsmasq" not in house.gateway.run(["sh", "-c", "ss -Hlnp sport = 53"]).out, "names there are theirs"
    if house.far("tcp", WAN[4], THEIRS):
        assert house.far("tcp", WAN[4], THEIRS).startswith("guest ")
    os.kill(house.process.pid, signal.SIGKILL)
    house.process.wait(10)
    for family in FAMILIES:
        direct = WAN[4] if family == 4 else CLIENT6
        assert house.ask("tcp", house.client, DIRECT[family]) == f"server {direct}"
        assert house.ask("tcp", house.client, PROXIED[family], SITE) == f"server {direct}"
