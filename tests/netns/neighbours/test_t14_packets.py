"""T14: packets of unusual make pass both planes: fragments, options, extension headers, several paths, data in a SYN,
a greeting in crumbs, and ICMP errors about what userspace has sent."""

from __future__ import annotations

import socket

import pytest

from gateway.kernel import mark
from gateway.lab.stage import poll
from tests.greetings import hello
from tests.netns.too_large import answer, complain

from .house import CLIENT, DIRECT, FAMILIES, KINDS, PROXIED, SITE, WAN, House

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t14_packets")]
PLACES = {"direct": DIRECT, "proxied": PROXIED}
IP_OPTIONS, IPV6_HOPOPTS, IPV6_DSTOPTS = 4, 54, 59
IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT, TCP_INFO, SYN_DATA = 30, 11, 32
ETH_P_ALL = 3
MTU = {4: 700, 6: 1300}


def seen(place: str, family: int) -> str:
    """Whom the site sees."""
    if place == "proxied":
        return PROXIED[family]
    return WAN[4] if family == 4 else CLIENT[6]


@pytest.mark.parametrize("size", [1473, 4000, 20000])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_t14_fragments(alone: House, place: str, family: int, size: int) -> None:
    with alone.open("udp", alone.client, PLACES[place][family]) as sock:
        for _ in range(2):
            sock.send(bytes(size))
            assert sock.recv(100).decode() == f"server {seen(place, family)} {size}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_t14_ip_options(alone: House, place: str, kind: str) -> None:
    """Padding, and a record of the route with room for two."""
    for options in (b"\x01\x01\x01\x01", b"\x07\x0b\x04" + bytes(8) + b"\0"):
        with alone.client.socket(socket.AF_INET, getattr(socket, KIND[kind])) as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_IP, IP_OPTIONS, options)
            sock.connect((PLACES[place][4], SITE))
            for _ in range(2):
                sock.send(b"?")
                assert sock.recv(100).decode() == f"server {seen(place, 4)} 1"


KIND = {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}


@pytest.mark.parametrize("header", [IPV6_HOPOPTS, IPV6_DSTOPTS])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_t14_extension_headers(alone: House, place: str, kind: str, header: int) -> None:
    with alone.client.socket(socket.AF_INET6, getattr(socket, KIND[kind])) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_IPV6, header, bytes((0, 0, 1, 4, 0, 0, 0, 0)))
        sock.connect((PLACES[place][6], SITE))
        for _ in range(2):
            sock.send(b"?")
            assert sock.recv(100).decode() == f"server {seen(place, 6)} 1"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_t14_several_paths(alone: House, place: str, family: int) -> None:
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with alone.client.call(lambda: socket.socket(kind, socket.SOCK_STREAM, IPPROTO_MPTCP)) as sock:
        sock.settimeout(5)
        sock.connect((PLACES[place][family], SITE))
        for _ in range(2):
            sock.send(b"?")
            assert sock.recv(100).decode() == f"server {seen(place, family)} 1"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", PLACES)
def test_t14_data_in_a_syn(alone: House, place: str, family: int) -> None:
    """The first connection fetches the cookie, the next ones use it; the gateway's listener has cookies too."""
    taken = 0
    for _ in range(3):
        with alone.client.socket(socket.AF_INET if family == 4 else socket.AF_INET6) as sock:
            sock.settimeout(5)
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            sock.connect((PLACES[place][family], SITE))
            sock.send(b"fast")
            assert sock.recv(100).decode() == f"server {seen(place, family)} 4"
            taken += bool(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 8)[5] & SYN_DATA)
    assert taken, "no SYN carried data: nothing is shown"


@pytest.mark.parametrize("family", FAMILIES)
def test_t14_a_greeting_in_crumbs(alone: House, family: int) -> None:
    """A ClientHello in segments of 5 bytes: the name in it decides all the same."""
    alone.reload(rules=[{"action": "sniff"}, {"domain": "tiny.example", "outbound": "direct"}])
    try:
        for name, expected in (("tiny.example", "direct"), ("other.example", "proxied")):
            greeting = hello(name)
            with alone.client.socket(socket.AF_INET if family == 4 else socket.AF_INET6) as sock:
                sock.settimeout(5)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
                sock.connect((PROXIED[family], SITE))
                for start in range(0, len(greeting), 5):
                    sock.send(greeting[start : start + 5])
                answer = sock.recv(100).decode().split()[1]
            # Userspace dials directly: with the gateway's own address, IPv6 too.
            assert answer == (WAN[family] if expected == "direct" else PROXIED[family]), name
    finally:
        alone.reload()


@pytest.mark.parametrize(
    ("place", "kind", "family"),
    [
        (place, kind, family)
        for place in PLACES
        for kind in KINDS
        for family in FAMILIES
        # Linux looks the route of an unconnected IPv4 socket up as if its address were a local one, finds none, and
        # forgets what it was told (__ipv4_sk_update_pmtu).
        if (place, kind, family) != ("proxied", "udp", 4)
    ],
)
def test_t14_a_packet_was_too_large(alone: House, place: str, kind: str, family: int) -> None:
    """A link behind the LAN carries less: the ICMP error goes to who has sent the packet. For a proxied flow that is
    the gateway in the site's name; for a direct one the site."""
    house, site = alone, PLACES[place][family]
    target = house.gateway if place == "proxied" else house.server
    # An IPv4 site knows the gateway alone.
    back = CLIENT[family] if place == "proxied" or family == 6 else WAN[4]
    with (
        house.client.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))) as wire,
        house.open(kind, house.client, site) as sock,
    ):
        wire.settimeout(5)
        sock.send(b"?")
        assert sock.recv(100).decode().split()[1] == seen(place, family)
        port = sock.getsockname()[1]
        packet = answer(wire, kind, (site, SITE), port)
        complain(house.client, packet, MTU[family])
        poll(lambda: f" mtu {MTU[family]}" in path(house, target, family, back), f"{target.name} was not told")
        sock.send(b"?")
        assert sock.recv(100).decode().split()[1] == seen(place, family)
    words = ["ip", f"-{family}", "route", "flush", "cache"]
    target.run(words, check=True)
    assert " mtu " not in path(house, target, family, back)


def path(house: House, target, family: int, to: str) -> str:
    return str(target.run(["ip", f"-{family}", "route", "get", to], check=True).out)


def test_t14_nothing_of_it_is_left(alone: House) -> None:
    """All of it was classified: each entry of the client to a site has a class."""
    found = [
        entry for entry in alone.entries() if str(entry.source.ip) in CLIENT.values() and entry.destination.port == SITE
    ]
    assert found
    assert {entry.mark & mark.CLASS for entry in found if entry.destination.port == SITE} <= {
        mark.USER,
        mark.SNIFF,
        mark.DIRECT,
    }
