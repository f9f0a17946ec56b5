"""T19: a bridge of somebody else's, made after the gateway has started, is a LAN of ours: its guests are steered."""

from __future__ import annotations

import pytest

from .house import CLIENT, DIRECT, GUEST6, KINDS, LAN, PROXIED, SERVER, THEIRS, WAN, House
from .neighbour import EVERY

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t19_guests")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.peer("iptables-nft")
def test_t19_a_foreign_bridge_becomes_a_lan(house: House, kind: str) -> None:
    """A container network that is to be steered too: it stands in ``lans`` without an address of ours. Its bridge comes
    after the gateway; its own addresses and those of Docker's making are let be."""
    (docker,) = (one for one in EVERY if one.name == "docker")
    more = {"lans": [{"interface": "br-lan", "address": [f"{LAN[4]}/24", f"{LAN[6]}/64"]},
                     {"interface": "docker0"}]}  # fmt: skip
    house.up(**more)
    out = house.beside(docker)
    try:
        for name in ("foreign-policies", "bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
            house.lines(*house.remedies(name))
        assert house.ask(kind, house.guest, PROXIED[4]) == f"server {PROXIED[4]}"
        assert house.ask(kind, house.guest, DIRECT[4]) == f"server {WAN[4]}"
        assert house.ask(kind, house.guest, PROXIED[6]) == f"server {PROXIED[6]}"
        assert house.ask(kind, house.guest, DIRECT[6]) == f"server {GUEST6}2"
        assert house.far(kind, WAN[4], THEIRS) == f"guest {SERVER[4]}"
        assert house.ask(kind, house.client, WAN[4], THEIRS) == f"guest {docker.network}.1", "a hairpin"
        assert house.ask(kind, house.client, f"{GUEST6}2") == f"guest {CLIENT[6]}", "from LAN to LAN"
    finally:
        out()
        house.close()


@pytest.mark.parametrize("kind", KINDS)
def test_t19_a_foreign_bridge_that_is_no_lan(house: House, kind: str) -> None:
    """To LAN clients its guests have addresses like any other: the rules decide."""
    (neighbour,) = (one for one in EVERY if one.name == "tailscale")
    house.up()
    out = house.beside(neighbour)
    guest = f"{neighbour.network}.2"
    try:
        assert house.ask(kind, house.client, guest, timeout=0.5) == "", "the proxy knows it"
        house.reload(rules=[{"ip_is_private": True, "outbound": "direct"}])
        assert house.ask(kind, house.client, guest) == f"guest {CLIENT[4]}"
    finally:
        out()
        house.close()
