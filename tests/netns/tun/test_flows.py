"""What passes the tun inbound: TCP, UDP, ICMP, both families, of the LAN and of this host."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.lab.stage import poll
from tests.netns.too_large import answer, complain

from .rig import CLIENT, MARKED, MODES, OWN, SITES, TUN, Ours, Rig, Unreachable, config, family

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("tun")]

SITE = {4: SITES[0], 6: SITES[4]}
OTHER = {4: SITES[1], 6: SITES[5]}
PROXIED = {4: SITES[2], 6: SITES[6]}
BLOCKED = {4: SITES[3], 6: SITES[7]}
SIZE = 32 << 20
ETH_P_ALL = 3
FAMILIES = pytest.mark.parametrize("version", [4, 6])
PLACES = pytest.mark.parametrize("place", ["client", "gateway"])


@pytest.fixture(scope="module", params=MODES)
def ours(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Ours]:
    """Direct but for one site that is blocked, and one that a SOCKS server has, which nobody is."""
    tun = MODES[request.param] | {"loopback_address": ["10.7.0.1", "fd07::1"], "udp_timeout": "20s"}
    value = config([TUN | tun])
    value["outbounds"] += [
        {"type": "socks", "tag": "proxy", "server": "192.0.2.1", "server_port": 1080},
        {"type": "block", "tag": "block"},
    ]
    value["route"] = {
        "rules": [
            {"ip_cidr": list(BLOCKED.values()), "outbound": "block"},
            {"ip_cidr": list(PROXIED.values()), "outbound": "proxy"},
        ]
    }
    with_ours = Ours(rig, value)
    with_ours.start()
    yield with_ours
    with_ours.close()


@FAMILIES
@PLACES
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_carried(rig: Rig, ours: Ours, place: str, kind: str, version: int) -> None:
    assert rig.carried(getattr(rig, place), kind, SITE[version])


@FAMILIES
def test_datagrams_of_one_socket_have_one_port(rig: Rig, ours: Ours, version: int) -> None:
    """Endpoint-independent: whoever is asked answers to the same client, and sees the same peer."""
    kind = socket.AF_INET6 if version == 6 else socket.AF_INET
    with rig.client.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        for site in (SITE[version], OTHER[version], SITE[version]):
            sock.sendto(b"?", (site, 7777))
            data, name = sock.recvfrom(100)
            assert (data.decode(), name[0]) == (MARKED[version], site)
    source = {line.split()[2] for line in ours.told().splitlines() if f"udp {_shown(SITE[version])}:7777" in line}
    assert len(source) == 1


def _shown(site: str) -> str:
    return f"[{site}]" if ":" in site else site


@FAMILIES
@PLACES
def test_bulk_both_ways_at_once(rig: Rig, ours: Ours, place: str, version: int) -> None:
    data = b"!" + os.urandom(SIZE)
    with rig.connect(getattr(rig, place), SITE[version], 7777) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        digest = hashlib.sha256()
        while part := sock.recv(1 << 20):
            digest.update(part)
        sender.join()
    assert digest.digest() == hashlib.sha256(data).digest()


@FAMILIES
@PLACES
def test_echo_that_no_direct_outbound_carries_is_answered_here(rig: Rig, ours: Ours, place: str, version: int) -> None:
    host = getattr(rig, place)
    assert rig.ping(host, PROXIED[version]) == "?", "answered, but not by the server"
    if place == "gateway":
        assert rig.ping(host, {4: "172.19.0.2", 6: "fdfe:dcba:9876::2"}[version]) == "?"


@FAMILIES
def test_echo_that_a_rule_refuses(rig: Rig, ours: Ours, version: int) -> None:
    with pytest.raises(Unreachable, match={4: "3/13", 6: "1/1"}[version]):
        rig.ping(rig.client, BLOCKED[version])


def test_many_echoes_at_once_are_told_apart(rig: Rig, ours: Ours) -> None:
    """Two hosts with the same identifier and sequence."""
    from gateway.protocol.tun import codec

    said = [codec.Echo(7, 1, word) for word in (b"one", b"two")]
    socks = [host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) for host in (rig.client, rig.guest)]
    for sock, echo in zip(socks, said, strict=True):
        sock.settimeout(5)
        sock.sendto(codec.write_echo(4, 8, echo), (SITE[4], 0))
    for sock, echo in zip(socks, said, strict=True):
        with sock:
            data = sock.recv(1000)
            assert codec.read_echo(data[20:], 0) == echo


@FAMILIES
def test_who_is_on_the_way_says_so(rig: Rig, ours: Ours, version: int) -> None:
    """A request whose hops end on the way out (traceroute): the error comes back as one about the client's request."""
    with pytest.raises(Unreachable, match={4: "11/0", 6: "3/0"}[version]):
        rig.ping(rig.client, SITE[version], hops=1)  # at the gateway itself
    hop = rig.server
    name = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}[version]
    beyond = {4: "198.18.0.1", 6: "2001:db8:9::1"}[version]
    hop.run(["sysctl", "-qw", f"net/{name}=1"], check=True)
    try:
        hop.run(["ip", "route", "add", beyond, "via", OWN[version]], check=True)
        with pytest.raises(Unreachable) as told:
            rig.ping(rig.client, beyond, hops=2)
        assert str(told.value) == {4: "11/0 from 203.0.113.2", 6: "3/0 from 2001:db8:3::2"}[version]
    finally:
        hop.run(["ip", "route", "del", beyond])
        hop.run(["sysctl", "-qw", f"net/{name}=0"])


@pytest.mark.parametrize(
    ("kind", "version"),
    # Linux forgets what an unconnected IPv4 socket of somebody else's address is told (__ipv4_sk_update_pmtu).
    [("tcp", 4), ("tcp", 6), ("udp", 6)],
)
def test_a_packet_was_too_large(rig: Rig, ours: Ours, kind: str, version: int) -> None:
    """A link behind the LAN carries less than what comes in the site's name: the gateway is told, who has sent it."""
    family, site, mtu = (socket.AF_INET6 if version == 6 else socket.AF_INET), SITE[version], {4: 700, 6: 1300}[version]
    style = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with (
        rig.client.call(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))) as wire,
        rig.client.socket(family, style) as sock,
    ):
        for one in (wire, sock):
            one.settimeout(5)
        sock.connect((site, 7777))
        sock.send(b"?")
        assert sock.recv(100).decode() == MARKED[version]
        packet = answer(wire, kind, (site, 7777), sock.getsockname()[1])
        complain(rig.client, packet, mtu)
        poll(lambda: f" mtu {mtu}" in path(rig, version), "it was not told", 5)
        sock.send(b"?")
        assert sock.recv(100).decode() == MARKED[version]
    rig.gateway.run(["ip", f"-{version}", "route", "flush", "cache"], check=True)
    assert " mtu " not in path(rig, version)


def path(rig: Rig, version: int) -> str:
    return rig.gateway.run(["ip", f"-{version}", "route", "get", CLIENT[version]], check=True).out


@FAMILIES
def test_what_this_host_says_of_an_answer_stays_here(rig: Rig, ours: Ours, version: int) -> None:
    """Who has asked is gone: the ICMP error is for us, who have answered in the site's name, not for the site."""
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    protocol = socket.IPPROTO_ICMPV6 if version == 6 else socket.IPPROTO_ICMP
    with rig.server.socket(family, socket.SOCK_RAW, protocol) as heard:
        heard.settimeout(1)
        with rig.gateway.socket(family, socket.SOCK_DGRAM) as sock:
            for _ in range(5):
                sock.sendto(b"?", (SITE[version], 7777))
        kinds = set()
        while True:
            try:
                data = heard.recv(2000)
            except TimeoutError:
                break
            kinds.add(data[20] if version == 4 else data[0])
        assert {4: 3, 6: 1}[version] not in kinds


@FAMILIES
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_loopback_address(rig: Rig, ours: Ours, kind: str, version: int) -> None:
    """Who speaks to it speaks to itself."""
    site = {4: "10.7.0.1", 6: "fd07::1"}[version]
    domain = socket.AF_INET6 if version == 6 else socket.AF_INET
    style = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with rig.client.socket(domain, style) as far, rig.client.socket(domain, style) as near:
        for sock in (far, near):
            sock.settimeout(10)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        far.bind(("::" if version == 6 else "0.0.0.0", 4567))
        if kind == "tcp":
            far.listen()
            near.connect((site, 4567))
            got, name = far.accept()
            with got:
                near.sendall(b"me")
                assert got.recv(10) == b"me"
        else:
            near.sendto(b"me", (site, 4567))
            data, name = far.recvfrom(10)
            assert data == b"me"
        assert name[0] == site


@FAMILIES
@pytest.mark.parametrize("host", ["client", "guest", "server"])
def test_nobody_reaches_the_listeners(rig: Rig, ours: Ours, version: int, host: str) -> None:
    kinds = {("tcp", "0A"), ("udp", "07")}
    ports = {number for kind, number in rig.gateway.listeners() if (kind, "0A") in kinds or kind == "udp"}
    assert ports, "there are listeners"
    at = {
        "client": {4: "192.168.7.1", 6: "2001:db8:1::1"},
        "guest": {4: "192.168.8.1", 6: "2001:db8:4::1"},
        "server": OWN,
    }
    domain = socket.AF_INET6 if version == 6 else socket.AF_INET
    for port in ports:
        with getattr(rig, host).socket(domain) as sock:
            sock.settimeout(0.5)
            with pytest.raises((ConnectionRefusedError, TimeoutError)):
                sock.connect((at[host][version], port))


def test_a_port_forward_goes_both_ways(rig: Rig, ours: Ours) -> None:
    """The host behind it answers from the LAN, whose flows the tun takes."""
    text = (
        "table ip forwards { chain c { type nat hook prerouting priority dstnat; iifname wan0 tcp dport 8099 dnat to "
    )
    rig.gateway.run(["nft", "-f", "-"], stdin=f"{text}{CLIENT[4]}:8098; }}; }}".encode(), check=True)
    with rig.client.socket() as listener, rig.server.socket() as sock:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", 8098))
        listener.listen()
        listener.settimeout(10)
        sock.settimeout(10)
        sock.bind((SITE[4], 0))
        sock.connect((OWN[4], 8099))
        got, name = listener.accept()
        with got:
            assert name[0] == SITE[4]
            got.sendall(b"home")
            assert sock.recv(10) == b"home"
    rig.gateway.run(["nft", "delete", "table", "ip", "forwards"], check=True)


def test_the_process_is_known(rig: Rig, ours: Ours) -> None:
    """Of a flow of this host, by its own socket."""
    name = os.path.basename(os.path.realpath(os.sys.executable))  # type: ignore[attr-defined]
    rules: list[Any] = ours.value["route"]["rules"]
    rules.insert(0, {"process_name": name, "ip_cidr": [SITE[4]], "outbound": "block"})
    try:
        assert "applied" in ours.reload()
        assert rig.ask(rig.gateway, "tcp", SITE[4]) == ""
        assert rig.carried(rig.client, "tcp", SITE[4])
    finally:
        del rules[0]
        assert "applied" in ours.reload()
    poll(lambda: rig.carried(rig.gateway, "tcp", SITE[4]), "carried again", 10)
    assert family(SITE[4]) == 4
