"""A network with a router that is not ours, a box of ours on it, and what ``gateway init`` makes of the box.

::

    desk ──┐                                   default gateway: the box
    phone ─┼─ [lan] main [wan] ── server       default gateway: main
    box ───┤                                   two more ports, one for tv, one that comes late for pad
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import Bridge, End, Link, Route, Service, Topology
from gateway.lab.topology import Host as Plan
from gateway.service.control import ask
from tests import peers
from tests.netns.far import SOCKS, far
from tests.netns.neighbours.house import echo

ROOT = Path(__file__).resolve().parents[3]
KINDS, FAMILIES = ("tcp", "udp"), (4, 6)
MAIN = {4: "192.168.7.1", 6: "2001:db8:7::1"}
BOX = {4: "192.168.7.2", 6: "2001:db8:7::2"}
DESK = {4: "192.168.7.3", 6: "2001:db8:7::3"}
PHONE = {4: "192.168.7.4", 6: "2001:db8:7::4"}
WAN = {4: "203.0.113.1", 6: "2001:db8:3::1"}
SERVER = {4: "203.0.113.2", 6: "2001:db8:3::2"}
DIRECT = {4: "198.51.100.1", 6: "2001:db8:2::1"}
PROXIED = {4: "198.51.100.2", 6: "2001:db8:2::2"}
SITE = 80
FORWARDING = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
UNFILTERED = {f"bridge/bridge-nf-call-{kind}tables": "0" for kind in ("ip", "ip6")}
NAT = 'table ip nat { chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }; }'
LATE = Link(End("box", "usb0"), End("pad", "eth0"))
UPLINK = Link(End("box", "eth0"), End("main", "to-box"))
# What a DHCP client calls with what it was given.
TAKE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr replace "$ip/$mask" dev "$interface"
ip route replace default via "$router"
"""


def dnsmasq(host: str, *words: str) -> Service:
    program = str(peers.path("dnsmasq"))
    common = (
        "-k",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--no-resolv",
        "--user=root",
        "--pid-file",
        "--bind-interfaces",
    )
    return Service(host, "dnsmasq", (program, *common, *words), ready=(("udp", 53),))


def topology() -> Topology:
    sites = [f"{site[family]}/{SITE}" for site in (DIRECT, PROXIED) for family in FAMILIES]

    def inner(name: str, own: dict[int, str], via: dict[int, str]) -> Plan:
        # As advertisements have it: redirects are sent for routers by their link-local address alone.
        six = Route("default6", "fe80::1", "eth0") if via is MAIN else Route("default6", via[6])
        routes = (Route("default", via[4]), six)
        addresses = {"eth0": (f"{own[4]}/24", f"{own[6]}/64")}
        return Plan(name, addresses=addresses, routes=routes, nameservers=(SERVER[4],), sysctls=UNFILTERED)

    return Topology(
        "topologies",
        (
            inner("desk", DESK, BOX),
            inner("phone", PHONE, MAIN),
            inner("box", BOX, MAIN),
            Plan("tv"),
            Plan("pad"),
            Plan(
                "main",
                bridges=(Bridge("lan", ("to-desk", "to-phone", "to-box")),),
                addresses={
                    "lan": (f"{MAIN[4]}/24", f"{MAIN[6]}/64", "fe80::1/64"),
                    "wan": (f"{WAN[4]}/24", f"{WAN[6]}/64"),
                },
                routes=(Route("default", SERVER[4]), Route("default6", SERVER[6])),
                sysctls=FORWARDING | UNFILTERED,
            ),
            Plan(
                "server",
                addresses={
                    "eth0": (f"{SERVER[4]}/24", f"{SERVER[6]}/64"),
                    "lo": tuple(f"{site[4]}/32" for site in (DIRECT, PROXIED))
                    + tuple(f"{site[6]}/128" for site in (DIRECT, PROXIED)),
                },
                # To the private network there is no way but by main's own address.
                routes=(Route("2001:db8:7::/64", WAN[6]),),
            ),
        ),
        (
            Link(End("desk", "eth0"), End("main", "to-desk")),
            Link(End("phone", "eth0"), End("main", "to-phone")),
            UPLINK,
            Link(End("box", "lan0"), End("tv", "eth0")),
            Link(End("main", "wan"), End("server", "eth0")),
        ),
        (
            echo("server", *sites),
            dnsmasq("server", f"--listen-address={SERVER[4]}", f"--address=/www.example/{DIRECT[4]}",
                    f"--address=/far.example/{PROXIED[4]}"),
            dnsmasq("main", "--interface=lan", f"--server={SERVER[4]}", "--dhcp-range=192.168.7.100,192.168.7.150,10m",
                    "--no-ping", "--dhcp-authoritative", "--dhcp-leasefile={folder}/leases"),
        ),
    )  # fmt: skip


def poll(what: Callable[[], Any], seconds: float = 40) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it has not come about"
        time.sleep(0.1)
    return found


class Place:
    """The laboratory, and a gateway on one of its hosts with the configuration that ``init`` makes there."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        done = lab.host("main").run(["nft", "-f", "-"], stdin=NAT.encode())
        assert done.ok, done.err
        self.rules = lab.folder / "a-rules.json"
        self.rules.write_text(json.dumps({
            "dns": {"servers": [{"type": "udp", "tag": "names", "server": SERVER[4]}]},
            "outbounds": [{"type": "direct", "tag": "direct"},
                          {"type": "socks", "tag": "proxy", "server": SERVER[4], "server_port": SOCKS}],
            "route": {"rules": [{"ip_cidr": [*PROXIED.values()], "outbound": "proxy"}], "final": "direct"},
        }))  # fmt: skip
        self.script = lab.folder / "take"
        self.script.write_text(TAKE)
        self.script.chmod(0o755)

    def host(self, name: str) -> Host:
        return self.lab.host(name)

    def init(self, name: str, *words: str) -> dict[str, Any]:
        """The ``gateway`` object that it proposes on this host, and has written."""
        self.on, self.instance = self.host(name), f"{name}-{self.lab.id}"
        self.file = self.lab.folder / "gateway.json"
        done = self.command("init", "--json", "--force", "--from", str(self.rules), "-o", str(self.file), *words)
        assert done.ok, done.err
        told = done.json()
        group = self.lab.folder / "group.json"
        group.write_text(json.dumps({"gateway": {"kernel": {"cgroup": str(self.on.group)}}}))
        self.files = [word for path in (self.rules, self.file, group) for word in ("-c", str(path))]
        checked = self.command("check", *self.files[:4])
        assert checked.ok, checked.err
        return dict(told["proposal"]["configuration"]["gateway"])

    def command(self, *words: str) -> Any:
        return self.on.run([sys.executable, "-m", "gateway", *words], cwd=ROOT, timeout=60)

    def start(self) -> None:
        words = [sys.executable, "-m", "gateway", "run", *self.files, "--instance", self.instance]
        self.process: Process = self.on.popen(words, cwd=ROOT)
        poll(self.ready)

    def ready(self) -> bool:
        assert self.process.running, self.process.told()
        told = self.status()
        return bool(told.get("steering")) and told["state"] == "running"

    def status(self) -> dict[str, Any]:
        with contextlib.suppress(Exception):
            return ask(Path("/run/gateway", self.instance), {"command": "status"})
        return {}

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> None:
        """SIGTERM and ``down``."""
        if self.process.running:
            os.kill(self.process.pid, signal.SIGTERM)
            done = self.process.wait(30)
            assert done.ok, done.err
        undone = self.command("down", "--instance", self.instance)
        assert undone.ok, undone.err

    def ask(self, host: str, address: str, kind: str = "tcp") -> str:
        """Whom the server saw; "" where nobody answers."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.host(host).socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            for _ in range(3 if kind == "udp" else 1):
                with contextlib.suppress(OSError):
                    sock.connect((address, SITE))
                    sock.send(b"?")
                    return sock.recv(200).decode().split()[1]
        return ""

    def direct(self, host: str, own: dict[int, str], kinds: tuple[str, ...] = KINDS) -> None:
        """It reaches the site that is direct; over IPv4 in main's name, over IPv6 in that of ``own``."""
        seen = {(kind, family): self.ask(host, DIRECT[family], kind) for kind in kinds for family in FAMILIES}
        assert seen == {(kind, family): WAN[4] if family == 4 else own[6] for kind, family in seen}

    def proxied(self, host: str) -> None:
        seen = {(kind, family): self.ask(host, PROXIED[family], kind) for kind in KINDS for family in FAMILIES}
        assert seen == {(kind, family): PROXIED[family] for kind, family in seen}, "who dialled is the proxy's host"

    def lease(self, host: str) -> str:
        """The address that a DHCP client on ``host`` takes."""
        words = [
            peers.path("busybox"),
            "udhcpc",
            "-f",
            "-q",
            "-n",
            "-t",
            "10",
            "-T",
            "1",
            "-i",
            "eth0",
            "-s",
            self.script,
        ]
        done = self.host(host).run(words, timeout=60)
        assert done.ok, done.err
        rows = self.host(host).run(["ip", "-j", "-4", "addr", "show", "dev", "eth0"]).json()
        return str(rows[0]["addr_info"][-1]["local"])

    def name(self, host: str, server: str, name: str = "www.example") -> str:
        words = ["dig", "+short", "+time=2", "+tries=3", f"@{server}", name, "A"]
        return str(self.host(host).run(words).out.strip())


@pytest.fixture
def place() -> Iterator[Place]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(topology()) as lab, far(lab, "server", SERVER[4]):
        yield Place(lab)
