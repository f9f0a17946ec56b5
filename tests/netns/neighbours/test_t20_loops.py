"""T20: whoever speaks to the gateway's own ends, directly or through it, is answered or refused, and nothing goes round
in circles."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest

from gateway.lab.stage import poll

from .house import CLIENT, FAMILIES, KINDS, LAN, MIXED, PROXIED, SERVER, SITE, SOCKS, TPROXY, WAN, House

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t20_loops")]
FEW = 12
"""Entries that one attempt may leave: a circle would make them by the hundred."""


@pytest.fixture
def calm(alone: House) -> Iterator[House]:
    """Afterwards no flow is left, and few were made."""
    before = alone.entries()
    yield alone
    poll(lambda: alone.status()["flows"] == 0, "flows go on by themselves")
    assert len(alone.entries()) <= len(before) + FEW
    assert alone.ask("tcp", alone.client, PROXIED[4]) == f"server {PROXIED[4]}"


def said(sock: socket.socket) -> bytes:
    """What comes back; nothing where it is closed or refused."""
    with contextlib.suppress(ConnectionError):
        return sock.recv(100)
    return b""


@pytest.mark.parametrize("address", [LAN, WAN], ids=["lan", "wan"])
@pytest.mark.parametrize("family", FAMILIES)
def test_t20_the_transparent_port_itself_by_tcp(calm: House, family: int, address: dict[int, str]) -> None:
    with calm.open("tcp", calm.client, address[family], TPROXY) as sock:
        with contextlib.suppress(ConnectionError):
            sock.send(b"GET / HTTP/1.1\r\nHost: loop.example\r\n\r\n")
        assert said(sock) == b""


@pytest.mark.parametrize("address", [LAN, WAN], ids=["lan", "wan"])
@pytest.mark.parametrize("family", FAMILIES)
def test_t20_the_transparent_port_itself_by_udp(calm: House, family: int, address: dict[int, str]) -> None:
    with calm.open("udp", calm.client, address[family], TPROXY, timeout=0.5) as sock:
        sock.send(b"?")
        with pytest.raises(TimeoutError):
            sock.recv(100)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t20_the_transparent_port_from_the_uplink_is_closed(calm: House, kind: str, family: int) -> None:
    assert calm.far(kind, WAN[family], TPROXY, 0.5) == ""


def through(sock: socket.socket, address: str, port: int) -> bytes:
    """SOCKS5 CONNECT (RFC 1928); the reply code, empty where nobody answers."""
    sock.send(b"\x05\x01\x00")
    if said(sock) != b"\x05\x00":
        return b""
    six = ":" in address
    packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
    sock.send(b"\x05\x01\x00" + (b"\x04" if six else b"\x01") + packed + struct.pack("!H", port))
    return said(sock)[1:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_t20_the_proxy_port_by_the_uplinks_address(calm: House, family: int) -> None:
    """A LAN's client may use it there as at the LAN's own address; the uplink may not."""
    with calm.open("tcp", calm.client, WAN[family], MIXED) as sock:
        assert through(sock, PROXIED[family], SITE) == b"\0"
        sock.send(b"?")
        assert sock.recv(100).decode() == f"server {PROXIED[family]} 1"
    assert calm.far("tcp", WAN[family], MIXED, 0.5) == ""


OWN = [{"ip_cidr": [*LAN.values(), *WAN.values()], "outbound": "direct"}]


@pytest.mark.parametrize("port", [TPROXY, MIXED])
@pytest.mark.parametrize("family", FAMILIES)
def test_t20_by_the_proxy_to_our_own_ports(alone: House, family: int, port: int) -> None:
    """Asked to connect to itself, directly."""
    alone.reload(rules=OWN)
    try:
        with alone.open("tcp", alone.client, LAN[family], MIXED) as sock:
            assert through(sock, WAN[family], port) in (b"\0", b"\5", b"")
            if port == TPROXY:
                with contextlib.suppress(ConnectionError):
                    sock.send(b"?")
                assert said(sock) == b"", "the listener takes nothing that was meant for itself"
            else:
                assert through(sock, PROXIED[family], SITE) == b"\0", "one more round is what was asked for"
                sock.send(b"?")
                assert sock.recv(100).decode() == f"server {PROXIED[family]} 1"
        poll(lambda: alone.status()["flows"] == 0, "flows go on by themselves")
    finally:
        alone.reload()


@pytest.mark.parametrize("rules", [(), ({"ip_cidr": [SERVER[4]], "outbound": "direct"},)], ids=["proxied", "direct"])
def test_t20_an_outbounds_server_through_the_gateway(alone: House, rules: tuple[dict, ...]) -> None:
    """A client that has the same proxy: its connection to the server is steered like any other, ours is not."""
    alone.reload(rules=rules)
    before = {(entry.source, entry.destination) for entry in alone.entries()}
    try:
        with alone.open("tcp", alone.client, SERVER[4], SOCKS) as sock:
            assert through(sock, PROXIED[4], SITE) == b"\0"
            sock.send(b"?")
            assert sock.recv(100).decode() == f"server {PROXIED[4]} 1"
            found = {(entry.source, entry.destination) for entry in alone.entries()} - before
            mine = [str(source.ip) for source, destination in found if destination.port == SOCKS]
            # The client's, and of a proxied one ours.
            assert sorted(mine) == sorted((CLIENT[4], *(() if rules else (WAN[4],))))
        poll(lambda: alone.status()["flows"] == 0, "flows go on by themselves")
    finally:
        alone.reload()
