"""T10: beside other rulesets port forwards, hairpin, the router's own services and guests work, and are never steered:
all that is steered goes to the proxy here, and would be answered by another, or by nobody."""

from __future__ import annotations

import pytest

from gateway.kernel import mark

from .house import (
    CLIENT,
    DESK,
    DIRECT,
    FAMILIES,
    FORWARD,
    GUEST6,
    KINDS,
    LAN,
    OPEN,
    OWN,
    PROXIED,
    SERVER,
    SERVER1,
    SITE,
    THEIRS,
    WAN,
    WAN1,
    House,
)
from .neighbour import Neighbour

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t10_forwards")]
Beside = tuple[House, Neighbour]


def outside(neighbour: Neighbour, family: int, client: str) -> str:
    """Whom a site sees of a direct flow: IPv6 is not translated, mwan3 has chosen the other uplink."""
    if family == 6:
        return client
    return WAN1[4] if neighbour.name == "mwan3" else WAN[4]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t10_lan_direct_and_proxied(beside: Beside, kind: str, family: int) -> None:
    house, neighbour = beside
    assert house.ask(kind, house.client, DIRECT[family]) == f"server {outside(neighbour, family, CLIENT[family])}"
    assert house.ask(kind, house.client, PROXIED[family]) == f"server {PROXIED[family]}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t10_local_direct_and_proxied(beside: Beside, kind: str, family: int) -> None:
    house, neighbour = beside
    # mwan3's rules are IPv4's alone.
    own = WAN[6] if family == 6 else outside(neighbour, 4, "")
    assert house.ask(kind, house.gateway, DIRECT[family]) == f"server {own}"
    assert house.ask(kind, house.gateway, PROXIED[family]) == f"server {PROXIED[family]}"


@pytest.mark.parametrize("kind", KINDS)
def test_t10_forward_of_ours(beside: Beside, kind: str) -> None:
    house, _ = beside
    assert house.far(kind, WAN[4], FORWARD) == f"desk {SERVER[4]}"
    assert house.far(kind, WAN1[4], FORWARD) == f"desk {SERVER1[4]}"
    assert house.far(kind, DESK[6]) == f"desk {SERVER[6]}"


@pytest.mark.parametrize("kind", KINDS)
def test_t10_hairpin_of_ours(beside: Beside, kind: str) -> None:
    """From the LAN, from the host that is forwarded to; and it leaves one entry, with NAT and no class."""
    house, _ = beside
    for here in (house.client, house.desk):
        assert house.ask(kind, here, WAN[4], FORWARD) == f"desk {LAN[4]}"
    found = [entry for entry in house.entries() if entry.destination.port == FORWARD]
    assert found
    assert {entry.mark & mark.CLASS for entry in found} == {0}
    assert house.ask(kind, house.client, DESK[6]) == f"desk {CLIENT[6]}"


@pytest.mark.parametrize("kind", KINDS)
def test_t10_forward_of_theirs_and_its_hairpin(beside: Beside, kind: str) -> None:
    house, neighbour = beside
    if not neighbour.publishes:
        assert house.far(kind, WAN[4], THEIRS, 0.5) == "", "nobody publishes that port"
        return
    assert house.far(kind, WAN[4], THEIRS) == f"guest {SERVER[4]}"
    seen = f"{neighbour.network}.1" if neighbour.name == "fw4" else CLIENT[4]
    assert house.ask(kind, house.client, WAN[4], THEIRS) == f"guest {seen}"
    found = [entry for entry in house.entries() if entry.destination.port == THEIRS]
    assert found
    assert {entry.mark & mark.CLASS for entry in found} == {0}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t10_services_of_the_router(beside: Beside, kind: str, family: int) -> None:
    house, _ = beside
    port = OPEN[kind]
    for address in (LAN[family], WAN[family]):
        assert house.ask(kind, house.client, address, port) == f"gateway {CLIENT[family]}"
    assert house.far(kind, WAN[family], port) == f"gateway {SERVER[family]}"
    closed = OPEN["udp"] if kind == "tcp" else OWN
    assert house.far(kind, WAN[family], closed, 0.5) == "", "declared for the other protocol"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t10_guests_reach_the_internet_unsteered(beside: Beside, kind: str, family: int) -> None:
    """Their bridge is no LAN of ours."""
    house, neighbour = beside
    seen = outside(neighbour, family, f"{GUEST6}2")
    for site in (DIRECT, PROXIED):
        assert house.ask(kind, house.guest, site[family], SITE) == f"server {seen}"
