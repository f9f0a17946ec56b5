"""T18: two uplinks. Direct flows leave by the elected one and are answered by it; when it loses its carrier what is
new leaves by the other at once, and of what runs nothing stays tied to the dead one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from gateway.lab.stage import poll

from .house import CLIENT, DESK, DIRECT, FAMILIES, FORWARD, KINDS, OPEN, SERVER, SERVER1, WAN, WAN1, House

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t18_uplinks")]
LANS = "2001:db8:1::/64"
TOLD = 10
"""Seconds."""


@pytest.fixture
def both(alone: House) -> Iterator[House]:
    """Each uplink carries, before and after."""
    alone.server.run(["sysctl", "-qw", "net.ipv6.conf.eth0.keep_addr_on_down=1"], check=True)
    back(alone)
    yield alone
    back(alone)


def back(house: House) -> None:
    house.server.run(["ip", "link", "set", "eth0", "up"], check=True)
    house.server.run(["ip", "-6", "route", "replace", LANS, "via", WAN[6]], check=True)
    poll(lambda: all(works(house, kind, family, WAN) for kind in KINDS for family in FAMILIES), "the first carries")


def dead(house: House) -> None:
    """The first uplink loses its carrier. The provider of the second knows the way to the LAN's prefix."""
    house.server.run(["ip", "link", "set", "eth0", "down"], check=True)
    house.server.run(["ip", "-6", "route", "replace", LANS, "via", WAN1[6]], check=True)


def works(house: House, kind: str, family: int, uplink: dict[int, str]) -> bool:
    seen = uplink[4] if family == 4 else CLIENT[6]
    way = house.gateway.run(["ip", "route", "get", DIRECT[family], "from", CLIENT[family], "iif", "br-lan"]).out
    there = f"dev wan{0 if uplink is WAN else 1}" in way
    return there and house.ask(kind, house.client, DIRECT[family], timeout=1) == f"server {seen}"


def ended(sock: socket.socket) -> bool:
    """Whether it is reset in time, by a question if not before."""
    sock.settimeout(TOLD)
    try:
        while True:
            sock.send(b"?")
            sock.recv(200)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t18_what_is_new_leaves_by_the_uplink_that_carries(both: House, kind: str, family: int) -> None:
    dead(both)
    poll(lambda: works(both, kind, family, WAN1), f"{kind} over IPv{family} by the second uplink", 10)
    back(both)


@pytest.mark.parametrize("family", FAMILIES)
def test_t18_a_udp_flow_goes_on_by_the_other_uplink(both: House, family: int) -> None:
    """The client's socket notices nothing but a pause; nothing translates it to the dead one's address."""
    with both.open("udp", both.client, DIRECT[family], timeout=1) as sock:
        port = sock.getsockname()[1]

        def seen() -> str:
            sock.send(b"?")
            try:
                return sock.recv(200).decode().split()[1]
            except TimeoutError:
                return ""

        assert seen() == (WAN[4] if family == 4 else CLIENT[6])
        dead(both)
        poll(lambda: seen() == (WAN1[4] if family == 4 else CLIENT[6]), "it goes on", 10)
        own = [one for one in both.entries() if (str(one.source.ip), one.source.port) == (CLIENT[family], port)]
        assert [str(one.reply_destination.ip) for one in own] == [WAN1[4] if family == 4 else CLIENT[6]]


def test_t18_a_translated_tcp_flow_is_told(both: House) -> None:
    """Its address has changed: the far end knows nothing of it and says so; it does not hang."""
    with both.open("tcp", both.client, DIRECT[4]) as sock:
        sock.send(b"?")
        assert sock.recv(200).decode().split()[1] == WAN[4]
        dead(both)
        assert ended(sock)


def test_t18_a_routed_tcp_flow_goes_on(both: House) -> None:
    with both.open("tcp", both.client, DIRECT[6], timeout=15) as sock:
        sock.send(b"?")
        assert sock.recv(200).decode().split()[1] == CLIENT[6]
        dead(both)
        poll(lambda: works(both, "tcp", 6, WAN1), "by the second uplink", 10)
        sock.send(b"?")
        assert sock.recv(200).decode().split()[1] == CLIENT[6]


@pytest.mark.parametrize("kind", KINDS)
def test_t18_each_uplink_is_answered_by_itself(both: House, kind: str) -> None:
    """From a host at its far end, whichever is elected: forwards, and the router's own services."""
    for wan, near in ((WAN, SERVER), (WAN1, SERVER1)):
        assert both.far(kind, wan[4], FORWARD) == f"desk {near[4]}"
        assert both.far(kind, wan[4], OPEN[kind]) == f"gateway {near[4]}"
        assert both.far(kind, wan[6], OPEN[kind]) == f"gateway {near[6]}"
    assert both.far(kind, DESK[6]) == f"desk {SERVER[6]}"
    with both.server.socket(socket.AF_INET, socket.SOCK_DGRAM) as stray:
        stray.settimeout(0.5)
        stray.connect((WAN1[4], 9))
        stray.send(b"?")
        with pytest.raises(TimeoutError):
            stray.recv(100)
