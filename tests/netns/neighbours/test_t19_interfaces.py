"""T19: interfaces come, go and change their addresses, and no rule is edited for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.lab.stage import poll

from .house import CLIENT, DIRECT, FAMILIES, FORWARD, KINDS, OPEN, PROXIED, SERVER, WAN, House

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t19_interfaces")]


def rules(house: House) -> str:
    """All rules with their handles, without what is learned and counted."""
    return str(house.gateway.run(["nft", "-a", "-t", "-s", "list", "ruleset"], check=True).out)


@pytest.fixture
def unedited(alone: House) -> Iterator[House]:
    # A flap costs IPv6 its addresses, which the gateway gives back: not all of the test before may have waited for it.
    for kind in KINDS:
        for family in FAMILIES:
            poll(lambda kind=kind, family=family: works(alone, kind, family), f"{kind} over IPv{family}")  # type: ignore[misc]
    before = rules(alone)
    yield alone
    assert rules(alone) == before


def works(house: House, kind: str, family: int) -> bool:
    return (
        house.ask(kind, house.client, DIRECT[family], timeout=1) == f"server {WAN[4] if family == 4 else CLIENT[6]}"
        and house.ask(kind, house.client, PROXIED[family], timeout=1) == f"server {PROXIED[family]}"
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["br-lan", "wan0"])
def test_t19_an_interface_flaps(unedited: House, name: str, kind: str, family: int) -> None:
    """The kernel drops its routes and, of IPv6, its addresses."""
    house = unedited
    # In one: the gateway itself sets up what it finds down.
    house.lines(f"ip link set {name} down; ip link set {name} up")
    poll(lambda: works(house, kind, family), f"{name} is up, and {kind} over IPv{family} does not work again")


def test_t19_a_lan_is_taken_away_and_comes_back(unedited: House) -> None:
    """A bridge that is made anew: another index, none of its addresses."""
    house = unedited
    house.lines("ip link del br-lan", "ip link add br-lan type bridge", "ip link set lan0 master br-lan",
                "ip link set lan1 master br-lan")  # fmt: skip
    for kind in KINDS:
        for family in FAMILIES:
            poll(lambda kind=kind, family=family: works(house, kind, family), f"{kind} over IPv{family}")  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_t19_a_lan_gets_a_port(unedited: House, kind: str) -> None:
    """The guest moves into the LAN."""
    house = unedited
    house.lines("ip link set guest0 master br-lan up")
    house.guest.run(["ip", "addr", "add", "192.168.7.9/24", "dev", "eth0"], check=True)
    house.guest.run(["ip", "route", "add", "default", "via", "192.168.7.1"], check=True)
    try:
        assert house.ask(kind, house.guest, PROXIED[4]) == f"server {PROXIED[4]}"
        assert house.ask(kind, house.guest, DIRECT[4]) == f"server {WAN[4]}"
        assert house.ask(kind, house.client, "192.168.7.9") == f"guest {CLIENT[4]}"
    finally:
        house.lines("ip link set guest0 nomaster")
        house.guest.run(["ip", "addr", "flush", "dev", "eth0", "scope", "global"], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_t19_the_uplink_gets_another_address(unedited: House, kind: str) -> None:
    """Hairpin, forwards and the router's own services are at it at once, and it is not steered."""
    house = unedited
    house.lines("ip addr add 203.0.113.77/25 dev wan0", "ip addr add 2001:db8:3::77/64 dev wan0 nodad")
    try:
        assert house.far(kind, "203.0.113.77", FORWARD) == f"desk {SERVER[4]}"
        assert house.ask(kind, house.client, "203.0.113.77", FORWARD).startswith("desk ")
        for address, family in (("203.0.113.77", 4), ("2001:db8:3::77", 6)):
            assert house.ask(kind, house.client, address, OPEN[kind]) == f"gateway {CLIENT[family]}"
            assert house.far(kind, address, OPEN[kind]) == f"gateway {SERVER[family]}"
    finally:
        house.lines("ip addr del 203.0.113.77/25 dev wan0", "ip addr del 2001:db8:3::77/64 dev wan0")


@pytest.mark.parametrize("kind", KINDS)
def test_t19_a_lan_gets_another_network(unedited: House, kind: str) -> None:
    house = unedited
    house.lines("ip addr add 192.168.77.1/24 dev br-lan")
    house.client.run(["ip", "addr", "add", "192.168.77.2/24", "dev", "eth0"], check=True)
    house.client.run(["ip", "route", "replace", "default", "via", "192.168.77.1", "src", "192.168.77.2"], check=True)
    try:
        assert house.ask(kind, house.client, DIRECT[4]) == f"server {WAN[4]}"
        assert house.ask(kind, house.client, PROXIED[4]) == f"server {PROXIED[4]}"
        assert house.ask(kind, house.client, "192.168.77.1", OPEN[kind]) == "gateway 192.168.77.2"
    finally:
        house.client.run(["ip", "route", "replace", "default", "via", "192.168.7.1"], check=True)
        house.client.run(["ip", "addr", "del", "192.168.77.2/24", "dev", "eth0"], check=True)
        house.lines("ip addr del 192.168.77.1/24 dev br-lan")
