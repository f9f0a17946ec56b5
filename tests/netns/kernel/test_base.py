"""The base table with packets: two LANs, two uplinks, and what each may do to the router and to the other side."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from gateway.kernel import mark
from gateway.kernel.nft import base
from gateway.kernel.nft.library import Library
from gateway.kernel.nft.writer import Writer
from gateway.kernel.plan import Base, Capture, Origin, PortForward, PortRow, Profile, SourceClass, Steering, Verdict
from gateway.lab.lab import Lab
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan

pytestmark = pytest.mark.root
ENDS = ("desk", "guest", "isp1", "isp2")
NETS = {"desk": ("192.168.7", "2001:db8:7"), "guest": ("192.168.8", "2001:db8:8"),
        "isp1": ("203.0.113", "2001:db8:1"), "isp2": ("198.51.100", "2001:db8:2")}  # fmt: skip
FAMILIES = (4, 6)
KINDS = ("tcp", "udp")
FORWARDS = (PortForward("tcp", 8080, "192.168.7.2", 80), PortForward("tcp", 80, "2001:db8:7::2", 0))


def host(name: str, family: int, last: int = 2) -> str:
    return f"{NETS[name][0]}.{last}" if family == 4 else f"{NETS[name][1]}::{last}"


TOPOLOGY = Topology(
    "base",
    (
        *(
            Plan(
                name,
                addresses={"eth0": (f"{host(name, 4)}/24", f"{host(name, 6)}/64")},
                # The uplinks know no way to private addresses.
                routes=(Route("default6", host(name, 6, 1)),)
                + ((Route("default", host(name, 4, 1)),) if name in ("desk", "guest") else ()),
            )
            for name in ENDS
        ),
        Plan(
            "router",
            addresses={name: (f"{host(name, 4, 1)}/24", f"{host(name, 6, 1)}/64") for name in ENDS},
            sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"},
        ),
    ),
    tuple(Link(End(name, "eth0"), End("router", name)) for name in ENDS),
)


class House:
    def __init__(self, lab: Lab) -> None:
        self.router = lab.host("router")
        self.hosts = {name: lab.host(name) for name in ENDS}

    def load(self, **options: object) -> None:
        plan = Base(("desk", "guest"), ("isp1", "isp2"), **options)  # type: ignore[arg-type]
        self.router.call(lambda: base.apply(Library(), plan))

    def reach(self, kind: str, here: str, address: str, port: int, there: str, timeout: float = 2) -> str:
        """Whom ``there``, which listens on ``port``, sees; "" where nothing arrives."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        type_ = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
        target = self.router if there == "router" else self.hosts[there]
        with closing(target.socket(family, type_)) as server, closing(self.hosts[here].socket(family, type_)) as client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", port))
            server.settimeout(timeout)
            client.settimeout(timeout)
            if kind == "tcp":
                server.listen()
            try:
                client.connect((address, port if port != 80 or ":" in address or there != "desk" else 8080))
                client.send(b"?")
                if kind == "tcp":
                    flow, source = server.accept()
                    flow.close()
                    return str(source[0])
                return str(server.recvfrom(10)[1][0])
            except OSError:
                return ""


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab:
        yield House(lab)


@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_segments_fit_a_narrow_uplink(house: House, family: int, narrow: bool) -> None:
    """Both ends are told: SYN and SYN-ACK are clamped (PPPoE, where path MTU discovery fails)."""
    house.load()
    if not narrow:
        house.router.call(lambda: base.clamp(Library(), ["isp2"]))
    house.router.run(["ip", "link", "set", "isp1", "mtu", "1400"], check=True)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    try:
        with closing(house.hosts["isp1"].socket(kind)) as server, closing(house.hosts["desk"].socket(kind)) as client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", 7777))
            server.listen()
            client.settimeout(5)
            client.connect((host("isp1", family), 7777))
            with closing(server.accept()[0]) as flow:
                stamps = 12  # TCP_MAXSEG leaves the timestamp option out
                if not narrow:
                    assert flow.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 1400
                    return
                for end in (client, flow):
                    assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1400 - (40 if family == 4 else 60)
                    assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) >= 1400 - 60 - stamps
    finally:
        house.router.run(["ip", "link", "set", "isp1", "mtu", "1500"], check=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_userspace_carried_is_not_forwarded_however_long_it_lived(house: House, family: int) -> None:
    """An entry that is assured and has the class of a userspace flow: the reaper deletes it, this is the second net."""
    house.load()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with closing(house.hosts["isp1"].socket(kind)) as server, closing(house.hosts["desk"].socket(kind)) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", 7778))
        server.listen()
        client.settimeout(5)
        client.connect((host("isp1", family), 7778))
        with closing(server.accept()[0]) as flow:
            client.sendall(b"?")
            assert flow.recv(1) == b"?"
            words = ["conntrack", "-U", "-f", f"ipv{family}", "-p", "tcp", "--dport", "7778", "--mark", hex(mark.USER)]
            house.router.run(words, check=True)
            client.sendall(b"!")
            with pytest.raises(ConnectionResetError):
                client.recv(1)


@pytest.mark.parametrize("wan", ["isp1", "isp2"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_uplink_is_closed(house: House, kind: str, family: int, wan: str) -> None:
    house.load(open_tcp=(22,), open_udp=(500,), forwards=FORWARDS)
    assert house.reach(kind, wan, host(wan, family, 1), 9, "router", 0.5) == ""
    declared = 22 if kind == "tcp" else 500
    assert house.reach(kind, wan, host(wan, family, 1), declared, "router") == host(wan, family)
    # A LAN host, by its own address: routable for IPv6 only.
    assert house.reach(kind, wan, host("guest", 6), 9, "guest", 0.5) == ""
    assert house.reach(kind, wan, host("guest", 6), 22, "guest", 0.5) == "", "open ports are the router's"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_forwards_are_exact(house: House, kind: str, family: int) -> None:
    house.load(forwards=FORWARDS)
    address = host("isp1", 4, 1) if family == 4 else host("desk", 6)
    assert house.reach(kind, "isp1", address, 80, "desk", 1) == (host("isp1", family) if kind == "tcp" else "")
    if family == 6:
        assert house.reach(kind, "isp1", host("guest", 6), 80, "guest", 0.5) == "", "another host, the same port"
        assert house.reach(kind, "isp1", host("desk", 6), 81, "desk", 0.5) == ""
        assert "2001:db8:7::2" not in str(
            house.router.run(["nft", "list", "chain", "inet", "gateway_base", "forwards"]).out
        )


@pytest.mark.parametrize("lan", ["desk", "guest"])
@pytest.mark.parametrize("wan", ["isp1", "isp2"])
@pytest.mark.parametrize("kind", KINDS)
def test_only_ipv4_is_masqueraded(house: House, kind: str, wan: str, lan: str) -> None:
    house.load()
    assert house.reach(kind, lan, host(wan, 4), 9, wan) == host(wan, 4, 1)
    assert house.reach(kind, lan, host(wan, 6), 9, wan) == host(lan, 6)


@pytest.mark.parametrize("sender", ["desk", "isp1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_else_speaks_with_an_address_of_ours(house: House, family: int, sender: str) -> None:
    """Although the interface accepts local sources: neither to the router itself nor to be forwarded."""
    house.load()
    house.router.run(["sysctl", "-qw", f"net.ipv4.conf.{sender}.accept_local=1"], check=True)
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    level, option = (socket.IPPROTO_IP, 19) if family == 4 else (socket.IPPROTO_IPV6, 75)  # transparent: any source
    targets = {house.router: host(sender, family, 1)}
    if sender == "desk":
        targets[house.hosts["guest"]] = host("guest", family)
    with (
        closing(house.hosts[sender].socket(kind, socket.SOCK_DGRAM)) as forged,
        closing(house.hosts[sender].socket(kind, socket.SOCK_DGRAM)) as honest,
    ):
        forged.setsockopt(level, option, 1)
        # Ports that the uplink lets in (DHCP).
        forged.bind((host("guest", family, 1), 67))
        honest.bind((host(sender, family), 67))
        for place, address in targets.items():
            with closing(place.socket(kind, socket.SOCK_DGRAM)) as sock:
                sock.bind(("", 68))
                sock.settimeout(5)
                forged.sendto(b"forged", (address, 68))
                honest.sendto(b"honest", (address, 68))
                assert sock.recv(10) == b"honest"


@pytest.mark.parametrize("fail", ["open", "closed"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_lans_reach_each_other_and_the_router(house: House, kind: str, family: int, fail: str) -> None:
    house.load(fail=fail)
    assert house.reach(kind, "desk", host("guest", family), 9, "guest") == host("desk", family)
    assert house.reach(kind, "desk", host("desk", family, 1), 9, "router") == host("desk", family)
    assert house.reach(kind, "desk", host("isp1", family, 1), 9, "router") == host("desk", family)
    assert bool(house.reach(kind, "desk", host("isp1", family), 9, "isp1", 1)) == (fail == "open")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_lan_to_lan_is_not_steered(house: House, kind: str, family: int) -> None:
    """The rules send everything to userspace, where nobody listens, and the guard stands."""
    house.load(fail="closed")
    rows = tuple(PortRow(network, 0, 65535, 0) for network in KINDS)  # type: ignore[arg-type]
    plan = Steering(
        (Profile((), (), Verdict.REJECT, Verdict.REJECT, False),), (SourceClass(rows),), (Origin((), (), 0),), (), 0
    )
    writer = house.router.call(Writer)
    try:
        house.router.call(lambda: writer.apply(plan, Capture(("desk", "guest"), 7893)))
        assert house.reach(kind, "desk", host("guest", family), 9, "guest") == host("desk", family)
        assert house.reach(kind, "desk", host("desk", family, 1), 9, "router") == host("desk", family)
        assert house.reach(kind, "desk", host("isp1", family), 9, "isp1", 0.5) == ""
        # The router's own flows into a LAN are not steered either.
        house.hosts["router"] = house.router
        assert house.reach(kind, "router", host("guest", family), 9, "guest") == host("guest", family, 1)
    finally:
        house.hosts.pop("router", None)
        writer.close()


@contextmanager
def raw(house: House, name: str, protocol: int) -> Iterator[socket.socket]:
    six = protocol == socket.IPPROTO_ICMPV6
    place = house.router if name == "router" else house.hosts[name]
    with closing(place.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol)) as sock:
        sock.settimeout(5)
        yield sock


def test_icmpv6_essentials_and_no_more(house: House) -> None:
    house.load()
    address = host("isp1", 6, 1)
    with raw(house, "isp1", socket.IPPROTO_ICMPV6) as sock, raw(house, "router", socket.IPPROTO_ICMPV6) as seen:
        # Neighbour discovery: the router answers a solicitation that is sent from scratch.
        house.hosts["isp1"].run(["ip", "-6", "neighbour", "flush", "dev", "eth0"], check=True)
        sock.sendto(struct.pack("!BBHHH", 128, 0, 0, 7, 1), (address, 0))
        while sock.recv(1000)[0] != 129:
            pass
        # A redirect (137), an unassigned type and packet-too-big (2) of no flow do not come in; an MLD query does.
        for kind in (137, 200, 2, 130):
            sock.sendto(struct.pack("!BBHI", kind, 0, 0, 1280) + bytes(48), (address, 0))
        kinds = []
        while 130 not in kinds:
            kinds.append(seen.recv(1000)[0])
        assert not {137, 200, 2} & set(kinds)
    rules = house.router.run(["nft", "list", "chain", "inet", "gateway_base", "wan_input"], check=True).out
    assert "ip6 hoplimit 255" in rules


@pytest.mark.parametrize(("sport", "dport", "passes"), [(67, 68, True), (67, 69, False), (66, 68, False)])
def test_dhcp_answers_pass(house: House, sport: int, dport: int, passes: bool) -> None:
    house.load()
    assert received(house, host("isp1", 4), host("isp1", 4, 1), sport, dport) == passes


@pytest.mark.parametrize("local", [True, False])
def test_dhcp6_answers_pass_on_the_link(house: House, local: bool) -> None:
    house.load()
    pairs = {name: link_local(house, name) for name in ("isp1", "router")}
    source, target = (pairs["isp1"], pairs["router"]) if local else (host("isp1", 6), host("isp1", 6, 1))
    assert received(house, source, target, 547, 546) == local


def link_local(house: House, name: str) -> str:
    place, device = (house.router, "isp1") if name == "router" else (house.hosts[name], "eth0")
    words = place.run(["ip", "-6", "-o", "addr", "show", "dev", device, "scope", "link"], check=True).out.split()
    return words[3].partition("/")[0]


def received(house: House, source: str, target: str, sport: int, dport: int) -> bool:
    """Does one datagram of the ISP arrive?"""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with (
        closing(house.router.socket(family, socket.SOCK_DGRAM)) as server,
        closing(house.hosts["isp1"].socket(family, socket.SOCK_DGRAM)) as client,
    ):
        scope = [house.router.call(lambda: socket.if_nametoindex("isp1"))] if target.startswith("fe80") else []
        own = [house.hosts["isp1"].call(lambda: socket.if_nametoindex("eth0"))] if scope else []
        server.bind((target, dport, 0, *scope) if scope else (target, dport))
        client.bind((source, sport, 0, *own) if own else (source, sport))
        server.settimeout(0.7)
        client.sendto(b"?", (target, dport, 0, *own) if own else (target, dport))
        try:
            return server.recv(10) == b"?"
        except TimeoutError:
            return False


@pytest.mark.parametrize("family", FAMILIES)
def test_related_errors_come_back(house: House, family: int) -> None:
    """The server has no such port: its ICMP error crosses the closed uplink."""
    house.load()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with closing(house.hosts["desk"].socket(kind, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(5)
        sock.connect((host("isp1", family), 9))
        sock.send(b"?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(10)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_firewall_policies_are_left_alone(house: House, family: int) -> None:
    house.load(firewall=False)
    assert house.reach("tcp", "isp1", host("isp1", family, 1), 9, "router") == host("isp1", family)
    assert house.reach("udp", "isp1", host("guest", 6), 9, "guest") == host("isp1", 6)
    assert house.reach("tcp", "desk", host("isp1", 4), 9, "isp1") == host("isp1", 4, 1), "masquerade stays"


def test_a_reload_cuts_no_flow(house: House) -> None:
    house.load()
    with closing(house.hosts["isp1"].socket()) as server, closing(house.hosts["desk"].socket()) as client:
        server.bind(("", 9))
        server.listen()
        client.settimeout(5)
        client.connect((host("isp1", 4), 9))
        flow, _ = server.accept()
        with flow:
            for _ in range(10):
                house.load(open_tcp=(22,))
                client.send(b"x")
                assert flow.recv(10) == b"x"
                flow.send(b"y")
                assert client.recv(10) == b"y"
