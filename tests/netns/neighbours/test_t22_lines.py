"""T22: what a foreign firewall lacks, doctor says as lines that can be typed as they stand; without them it fails,
with them it works, also when the gateway is dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from gateway.kernel import mark
from gateway.lab.stage import poll

from .house import CLIENT, DESK, DIRECT, FAMILIES, FORWARD, KINDS, PROXIED, SERVER, WAN, House, printed
from .neighbour import EVERY, Neighbour

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t22_lines")]
NAMED = {one.name: one for one in EVERY}
BEGINNINGS = {"docker": ("iptables ", "ip6tables "), "firewalld": ("nft ",)}
"""How the neighbour's lines in docs/neighbours.md begin."""
CHAINS = {
    "docker": {"ip filter FORWARD", "ip6 filter FORWARD"},
    "firewalld": {f"inet firewalld filter_{hook}" for hook in ("PREROUTING", "INPUT", "FORWARD")},
}


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.peer("iptables-nft")), "firewalld"])
def strict(house: House, request: pytest.FixtureRequest) -> Iterator[tuple[House, Neighbour]]:
    """Beside a firewall that has no line for us."""
    neighbour = NAMED[request.param]
    house.up(firewall=neighbour.firewall)
    with closing(house):
        out = house.beside(neighbour)
        try:
            yield house, neighbour
        finally:
            out()


def all_works(house: House) -> None:
    for kind in KINDS:
        for family in FAMILIES:
            seen = WAN[4] if family == 4 else CLIENT[6]
            assert house.ask(kind, house.client, DIRECT[family]) == f"server {seen}"
            assert house.ask(kind, house.client, PROXIED[family]) == f"server {PROXIED[family]}"
        assert house.far(kind, WAN[4], FORWARD) == f"desk {SERVER[4]}"
        assert house.far(kind, DESK[6]) == f"desk {SERVER[6]}"


def test_t22_the_lines_mend_what_is_broken(strict: tuple[House, Neighbour]) -> None:
    house, neighbour = strict
    assert house.ask("tcp", house.client, DIRECT[4], timeout=0.5) == ""
    found = house.findings()["foreign-policies"]
    assert not found["ok"]
    assert set(found["detail"].partition(":")[0].split(", ")) == CHAINS[neighbour.name]
    assert printed(*BEGINNINGS[neighbour.name]) == sorted(found["remedy"].split("; "))
    told = house.command("status", "--json", environment=house.foreign).json()["conflicts"]
    assert [one["name"] for one in told] == ["foreign-policies"]
    assert found["remedy"] in house.command("status", environment=house.foreign).out
    house.lines(*found["remedy"].split("; "))
    assert house.findings()["foreign-policies"]["ok"]
    assert house.command("status", "--json", environment=house.foreign).json()["conflicts"] == []
    all_works(house)
    if neighbour.name == "docker":
        # Its own tools still read the chains, and Docker changes them at will.
        house.lines("iptables -L DOCKER-USER -n", "ip6tables -S", "iptables -A DOCKER -i lo -j ACCEPT")


def test_t22_after_sigkill_the_lan_is_online(strict: tuple[House, Neighbour]) -> None:
    house, _ = strict
    house.lines(*house.remedies("foreign-policies"))
    os.kill(house.process.pid, signal.SIGKILL)
    house.process.wait(30)
    poll(lambda: house.entries(mark.ROUTE, mark.ROUTE) == [], "the reaper leaves entries behind")
    for kind in KINDS:
        for site in (DIRECT, PROXIED):
            assert house.ask(kind, house.client, site[4]) == f"server {WAN[4]}"
            assert house.ask(kind, house.client, site[6]) == f"server {CLIENT[6]}"
        assert house.far(kind, WAN[4], FORWARD) == f"desk {SERVER[4]}"


def test_t22_firewalld_with_the_lan_in_a_trusted_zone(house: House) -> None:
    """What firewall-cmd makes of the lines in docs/neighbours.md: no line of nft is needed but that of the reverse
    path of IPv6."""
    neighbour = NAMED["firewalld"]
    house.up(firewall=False)
    with closing(house):
        out = house.beside(neighbour)
        try:
            for chain, zone in (("filter_INPUT_ZONES", "IN"), ("filter_FORWARD_ZONES", "FWD")):
                house.nft(f'insert rule inet firewalld {chain} iifname "br-lan" goto filter_{zone}_trusted')
            lines = house.remedies("foreign-policies")
            assert [line for line in lines if "ip6 daddr" not in line] == [
                "nft insert rule inet firewalld filter_PREROUTING 'meta mark & 0x01000000 == 0x01000000 accept'"
            ]
            house.lines(*lines)
            all_works(house)
        finally:
            out()
