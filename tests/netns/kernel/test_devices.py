"""Rules by device, with packets: two hosts behind a bridge and one on a guest LAN, told apart in both planes."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count, product
from pathlib import Path
from typing import Any

import dns.message
import pytest

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import Bridge, End, Link, Route, Topology
from gateway.lab.topology import Host as Plan
from gateway.service.control import ask
from tests.peers import path

from .whole import Whole

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.peer("busybox"), pytest.mark.xdist_group("devices")]

PHONE, TV, VISITOR = "00:53:00:00:00:01", "00:53:00:00:00:02", "00:53:00:00:00:03"
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
NUMBERS = count(77)
"""Of addresses that nobody has had yet."""
SERVER = {4: "203.0.113.2", 6: "2001:db8:3::2"}


def plan(name: str, number: int, net: int) -> Plan:
    routes = (Route("default", f"192.168.{net}.1"), Route("default6", f"2001:db8:{net}::1"))
    return Plan(name, addresses={"eth0": (f"192.168.{net}.{number}/24", f"2001:db8:{net}::{number}/64")}, routes=routes)


TOPOLOGY = Topology(
    "devices",
    (
        plan("client", 2, 7), plan("tv", 3, 7), plan("visitor", 2, 9),
        Plan("gateway", (Bridge("br0", ("p0", "p1")), Bridge("docker0")), {"guest0": (), "wan0": ()}),
        Plan("server", addresses={"eth0": (f"{SERVER[4]}/24", f"{SERVER[6]}/64")},
             routes=(Route("default6", "2001:db8:3::1"),)),
    ),
    (
        Link(End("client", "eth0", PHONE), End("gateway", "p0")), Link(End("tv", "eth0", TV), End("gateway", "p1")),
        Link(End("visitor", "eth0", VISITOR), End("gateway", "guest0")),
        Link(End("gateway", "wan0"), End("server", "eth0")),
    ),
)  # fmt: skip
SETTINGS = [Path(f"/proc/sys/net/bridge/bridge-nf-call-ip{six}tables") for six in ("", "6")]
BY_MAC, BY_NAME, BY_INTERFACE, BY_ALL, NOT_MAC = range(7001, 7006)
RULES: list[dict[str, Any]] = [
    {"port": 53, "action": "hijack-dns"},
    {"port": BY_MAC, "source_mac_address": PHONE.upper(), "outbound": "slow"},
    {"port": BY_NAME, "source_hostname": "Tv", "outbound": "slow"},
    {"port": BY_INTERFACE, "source_interface": "guest0", "outbound": "slow"},
    {"port": BY_ALL, "source_interface": "br0", "source_mac_address": [TV, VISITOR], "outbound": "slow"},
    {
        "type": "logical", "mode": "and", "outbound": "slow",
        "rules": [{"port": NOT_MAC}, {"source_mac_address": [PHONE], "invert": True}],
    },
]  # fmt: skip


class Way(Whole):
    """``slow`` is direct with an option that the kernel does not know, so userspace carries it."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.tv, self.visitor = lab.host("tv"), lab.host("visitor")
        self.hosts = {PHONE: self.client, TV: self.tv, VISITOR: self.visitor}
        lease = {"range": ["192.168.7.100", "192.168.7.199"]}
        self.path.write_text(json.dumps({
            "dns": {
                "servers": [{"type": "hosts", "tag": tag, "predefined": {"www.example": [answer]}}
                            for tag, answer in (("phone", "192.0.2.66"), ("others", "192.0.2.1"))],
                "rules": [{"source_mac_address": PHONE, "server": "phone"}],
                "final": "others",
            },
            "outbounds": [{"type": "direct", "tag": "direct"},
                          {"type": "direct", "tag": "slow", "connect_timeout": "9s"}],
            "route": {"rules": RULES},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {"address": ["203.0.113.1/24", "2001:db8:3::1/64"]}}],
                "lans": [{"interface": "br0", "address": ["192.168.7.1/24", "2001:db8:7::1/64"], "dhcp_server": lease},
                         {"interface": "guest0", "address": ["192.168.9.1/24", "2001:db8:9::1/64"]}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": "off"},
            },
        }))  # fmt: skip
        self.socks = [listening(self.server, version, kind, port)
                      for version in SERVER for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)
                      for port in (BY_MAC, BY_NAME, BY_INTERFACE, BY_ALL, NOT_MAC)]  # fmt: skip
        self.start()
        poll(lambda: self.status().get("state") == "running" and self.reaches(), self.process.told(), 30)

    def reaches(self) -> bool:
        """Whether the server refuses everybody a port at which nobody listens."""
        for host, (version, server) in product(self.hosts.values(), SERVER.items()):
            with closing(host.socket(FAMILIES[version])) as sock:
                sock.settimeout(1)
                if sock.connect_ex((server, 7000)) != errno.ECONNREFUSED:
                    return False
        return True

    def flow(self, host: Host, port: int, version: int, kind: int, source: str = "") -> dict[str, Any]:
        """What ``gateway flows`` says of a flow that has reached the server."""
        family = FAMILIES[version]
        with closing(host.socket(family, kind)) as sock:
            sock.settimeout(20)
            sock.bind((source, 0))
            sock.connect((SERVER[version], port))
            sock.send(b"hello")
            served = next(one for one in self.socks if one.getsockname()[1] == port and one.family == family
                          and one.type == kind)  # fmt: skip
            if kind == socket.SOCK_STREAM:
                far, _ = served.accept()
            else:
                far, (_, peer) = served, served.recvfrom(100)
                far.sendto(b"answer", peer)
                assert sock.recv(100) == b"answer"
            name, near = sock.getsockname()[:2]
            text = f"{name}:{near}" if version == 4 else f"[{name}]:{near}"
            answer = ask(Path("/run/gateway", self.instance), {"command": "flows", "filter": [text, f":{port}"]})
            (found,) = [row for row in answer["flows"] if row["source"] == text]
            if kind == socket.SOCK_STREAM:
                far.close()
            return dict(found)

    def planes(self, port: int) -> dict[str, str]:
        """MAC to the plane that carries all of its flows, of both families and networks."""
        found = {}
        for mac, host in self.hosts.items():
            flows = [self.flow(host, port, version, kind) for version in SERVER
                     for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]  # fmt: skip
            assert {flow["device"] for flow in flows} == {mac}
            (found[mac],) = {flow["plane"] for flow in flows}
        return found

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        super().close()
        assert self.gateway.call(lambda: [path.read_text() for path in SETTINGS]) == ["1\n", "1\n"]
        assert self.calls("docker0") == calls(False)

    def calls(self, name: str) -> set[str]:
        """A bridge's own settings."""
        return set(re.findall(r"nf_call_ip6?tables \d", self.gateway.run(["ip", "-d", "link", "show", name]).out))


def calls(on: bool) -> set[str]:
    return {f"nf_call_ip{six}tables {int(on)}" for six in ("", "6")}


def listening(host: Host, version: int, kind: int, port: int) -> socket.socket:
    sock = host.socket(FAMILIES[version], kind)
    sock.settimeout(20)
    sock.bind((SERVER[version], port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Way(lab)) as way:
        yield way


@pytest.mark.parametrize(
    ("port", "slow"),
    [(BY_MAC, {PHONE}), (BY_INTERFACE, {VISITOR}), (BY_ALL, {TV}), (NOT_MAC, {TV, VISITOR}), (BY_NAME, set())],
)
def test_devices_are_told_apart(way: Way, port: int, slow: set[str]) -> None:
    assert way.planes(port) == {mac: "userspace" if mac in slow else "kernel" for mac in way.hosts}


@contextmanager
def new_address(way: Way, version: int) -> Iterator[str]:
    """The phone gets another one. It knows the gateway, and the gateway has no neighbour of that address yet."""
    assert way.flow(way.client, BY_MAC, version, socket.SOCK_STREAM)["chain"] == ["slow"]
    number = next(NUMBERS)
    address, size = (f"192.168.7.{number}", 24) if version == 4 else (f"2001:db8:7::{number}", 64)
    words = [f"{address}/{size}", "dev", "eth0"]
    way.client.run(["ip", "addr", "add", *words, *(["nodad"] if version == 6 else [])], check=True)
    try:
        assert not way.gateway.run(["ip", "neigh", "show", address], check=True).out
        yield address
    finally:
        way.client.run(["ip", "addr", "del", *words], check=True)


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_address_is_known_by_its_first_datagram(way: Way, version: int) -> None:
    with new_address(way, version) as source:
        found = way.flow(way.client, BY_MAC, version, socket.SOCK_DGRAM, source)
        assert (found["plane"], found["chain"], found["device"]) == ("userspace", ["slow"], PHONE)


@pytest.mark.parametrize("version", [4, 6])
def test_a_new_address_is_known_by_its_first_question(way: Way, version: int) -> None:
    """The same for DNS, whomever it asks."""
    with new_address(way, version) as source, closing(way.client.socket(FAMILIES[version], socket.SOCK_DGRAM)) as sock:
        sock.settimeout(20)
        sock.bind((source, 0))
        sock.sendto(dns.message.make_query("www.example", "A").to_wire(), (SERVER[version], 53))
        answer = dns.message.from_wire(sock.recv(2000))
    assert "192.0.2.66" in str(answer), "the phone's own answer"


def test_other_bridges_are_filtered_as_before(way: Way) -> None:
    """br_netfilter's settings would keep br0 from being steered. They are gone, for br0 alone."""

    assert way.gateway.call(lambda: [path.read_text() for path in SETTINGS]) == ["0\n", "0\n"]
    assert (way.calls("br0"), way.calls("docker0")) == (calls(False), calls(True))
    assert way.gateway.run(["ip", "link", "add", "virbr0", "type", "bridge"]).ok
    poll(lambda: way.calls("virbr0") == calls(True), "a new bridge is not filtered", 10)


def test_explain_knows_the_device(way: Way) -> None:
    def where(*words: str) -> tuple[str, str]:
        told = way.command("explain", SERVER[4], "--port", str(BY_MAC), "--json", *words).json()
        return told["where"], told["outbound"]

    assert where("--source", "192.168.7.2") == ("userspace", "slow"), "found by its address"
    assert where("--source", "192.168.7.3") == ("kernel", "direct")
    assert where("--source", "192.168.7.3", "--mac", PHONE) == ("userspace", "slow")


def test_a_name_counts_from_its_lease_on(way: Way) -> None:
    """A real DHCP client takes a lease by its name; that of somebody else takes the name over."""
    ask = [str(path("busybox")), "udhcpc", "-f", "-q", "-n", "-t", "8", "-i", "eth0", "-s", "/bin/true"]
    told = ("--json", "--port", str(BY_NAME), "--source")
    assert way.tv.run([*ask, "-x", "hostname:TV"], timeout=60).ok
    poll(lambda: way.command("explain", SERVER[4], *told, "192.168.7.3").json()["outbound"] == "slow", "no name", 10)
    poll(lambda: way.flow(way.tv, BY_NAME, 4, socket.SOCK_STREAM)["plane"] == "userspace", "not steered", 10)
    assert way.planes(BY_NAME) == {PHONE: "kernel", TV: "userspace", VISITOR: "kernel"}
    assert way.flow(way.tv, BY_NAME, 6, socket.SOCK_STREAM)["hostname"] == "tv"
    assert way.client.run([*ask, "-x", "hostname:tv"], timeout=60).ok
    poll(lambda: way.flow(way.client, BY_NAME, 4, socket.SOCK_STREAM)["plane"] == "userspace", "not steered", 10)
