"""A house with a guest behind a bridge of somebody else's, two uplinks, and a whole gateway on its router.

::

    client, desk -- br-lan  gateway  wan0, wan1 -- server (the sites, the far end of the outbound "proxy")
                            guest0 -- guest: a container or a virtual machine, on the bridge that its neighbour makes
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.kernel import conntrack
from gateway.lab.host import PATHS, Host
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import Bridge, End, Link, Route, Service, Topology
from gateway.lab.topology import Host as Plan
from tests import peers
from tests.netns.far import SOCKS
from tests.netns.kernel.whole import Whole

if TYPE_CHECKING:
    from .neighbour import Neighbour

ROOT = Path(__file__).resolve().parents[3]
RULES = Path(__file__).parent / "rules"
KINDS, FAMILIES = ("tcp", "udp"), (4, 6)
LAN = {4: "192.168.7.1", 6: "2001:db8:1::1"}
CLIENT = {4: "192.168.7.2", 6: "2001:db8:1::2"}
DESK = {4: "192.168.7.3", 6: "2001:db8:1::3"}
WAN = {4: "203.0.113.1", 6: "2001:db8:3::1"}
WAN1 = {4: "203.0.113.129", 6: "2001:db8:4::1"}
SERVER = {4: "203.0.113.2", 6: "2001:db8:3::2"}
SERVER1 = {4: "203.0.113.130", 6: "2001:db8:4::2"}
DIRECT = {4: "198.51.100.1", 6: "2001:db8:2::1"}
PROXIED = {4: "198.51.100.2", 6: "2001:db8:2::2"}
GUEST6 = "2001:db8:9::"
TPROXY, MIXED = 7893, 7890
FAST = {"ipv4/tcp_fastopen": "0x403"}
"""Every listener takes data in a SYN."""
SITE, OWN, OPEN = 80, 22, {"tcp": 22, "udp": 500}
"""Ports: of every site, of the router's own services, of those that the uplink may reach."""
FORWARD, THEIRS = 8080, 8000
"""Ports of the uplink: our forward to the desk, the neighbour's to its guest."""

ECHO = """
import socket, sys, threading
name = sys.argv[1]
def stream(flow):
    with flow:
        while data := flow.recv(65536):
            flow.sendall(f"{name} {flow.getpeername()[0]} {len(data)}".encode())
def listen(sock):
    while True:
        threading.Thread(target=stream, args=(sock.accept()[0],), daemon=True).start()
def datagrams(sock):
    while True:
        data, where, _, source = sock.recvmsg(65536, 256)
        try:
            # From the address that was asked.
            sock.sendmsg([f"{name} {source[0]} {len(data)}".encode()], where, 0, source)
        except OSError:
            pass
for word in sys.argv[2:]:
    host, _, port = word.rpartition("/")
    for family in (socket.AF_INET6,) if ":" in host else (socket.AF_INET,):
        threading.Thread(target=listen, args=(socket.create_server((host, int(port)), family=family),)).start()
        udp = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            udp.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        udp.bind((host, int(port)))
        threading.Thread(target=datagrams, args=(udp,)).start()
"""


def echo(host: str, *places: str) -> Service:
    """TCP and UDP on ``address/port``: who answers, whom it saw, how many bytes at once."""
    ports = {int(place.rpartition("/")[2]) for place in places}
    ready = tuple((kind, port) for port in sorted(ports) for kind in KINDS)
    return Service(host, "echo", (sys.executable, "-c", ECHO, host, *places), ready=ready)  # type: ignore[arg-type]


def topology() -> Topology:
    sites = [f"{site[family]}/{SITE}" for site in (DIRECT, PROXIED) for family in FAMILIES]
    return Topology(
        "neighbours",
        (
            *(
                Plan(
                    name,
                    addresses={"eth0": (f"{own[4]}/24", f"{own[6]}/64")},
                    routes=(Route("default", LAN[4]), Route("default6", LAN[6])),
                )
                for name, own in (("client", CLIENT), ("desk", DESK))
            ),
            Plan("guest", addresses={"eth0": ()}),
            Plan(
                "gateway",
                bridges=(Bridge("br-lan", ("lan0", "lan1")),),
                addresses={"wan0": (), "wan1": ()},
                # As on a machine without br_netfilter.
                sysctls={f"bridge/bridge-nf-call-{kind}tables": "0" for kind in ("ip", "ip6")} | FAST,
            ),
            # It knows no way to private addresses.
            Plan(
                "server",
                addresses={
                    "eth0": (f"{SERVER[4]}/25", f"{SERVER[6]}/64"),
                    "eth1": (f"{SERVER1[4]}/25", f"{SERVER1[6]}/64"),
                    "lo": tuple(f"{site[4]}/32" for site in (DIRECT, PROXIED))
                    + tuple(f"{site[6]}/128" for site in (DIRECT, PROXIED)),
                },
                sysctls=FAST,
                routes=(Route("2001:db8:1::/64", WAN[6]), Route(f"{GUEST6}/64", WAN[6])),
            ),
        ),
        (
            Link(End("client", "eth0"), End("gateway", "lan0")),
            Link(End("desk", "eth0"), End("gateway", "lan1")),
            # A bridge has the lowest address of its ports: that of the LAN stays when the guest moves in.
            Link(End("guest", "eth0"), End("gateway", "guest0", mac="fe:ff:ff:ff:ff:01")),
            Link(End("gateway", "wan0"), End("server", "eth0")),
            Link(End("gateway", "wan1"), End("server", "eth1")),
        ),
        (
            echo("server", *sites),
            echo("desk", f"0.0.0.0/{SITE}", f"::/{SITE}"),
            echo("guest", f"0.0.0.0/{SITE}", f"::/{SITE}"),
            echo("gateway", *(f"{host}/{port}" for host in ("0.0.0.0", "::") for port in (OWN, OPEN["udp"]))),
        ),
    )  # fmt: skip


def printed(*beginnings: str) -> list[str]:
    """The shell lines in docs/neighbours.md that begin so."""
    page = (ROOT / "docs" / "neighbours.md").read_text().splitlines()
    return sorted(line.strip() for line in page if line.startswith("    ") and line.strip().startswith(beginnings))


class House(Whole):
    """All goes to the proxy but what has an address of ``DIRECT``, so that what is steered wrongly shows."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.desk, self.guest = lab.host("desk"), lab.host("guest")

    @cached_property
    def foreign(self) -> dict[str, str]:
        """An environment with iptables, as on a machine that has it."""
        program = peers.path("iptables-nft")
        libraries = next(program.parent.parent.glob("tree/usr/lib/*/xtables"))
        folder = self.lab.folder / "bin"
        folder.mkdir()
        for name in ("iptables", "ip6tables"):
            for suffix in ("", "-restore", "-save"):
                (folder / f"{name}{suffix}").symlink_to(program.parent / f"{name}-nft{suffix}")
        return {"PATH": f"{folder}:{PATHS}", "XTABLES_LIBDIR": str(libraries)}

    def configure(self, rules: Sequence[dict[str, Any]] = (), **more: Any) -> None:
        """``rules`` come before the one of ``DIRECT``; ``more`` goes into the ``gateway`` object."""
        self.path.write_text(json.dumps({
            "inbounds": [{"type": "tproxy", "tag": "in", "listen": "::", "listen_port": TPROXY},
                         {"type": "mixed", "listen": "::", "listen_port": MIXED}],
            "outbounds": [{"type": "socks", "tag": "proxy", "server": SERVER[4], "server_port": SOCKS},
                          {"type": "direct", "tag": "direct"}],
            "route": {"rules": [*rules, {"ip_cidr": list(DIRECT.values()), "outbound": "direct"}]},
            "gateway": {
                "inbound": "in",
                "uplinks": [
                    {"interface": "wan0", "static": {"address": [f"{WAN[4]}/25", f"{WAN[6]}/64"],
                                                     "gateway": [SERVER[4], SERVER[6]]}},
                    {"interface": "wan1", "static": {"address": [f"{WAN1[4]}/25", f"{WAN1[6]}/64"],
                                                     "gateway": [SERVER1[4], SERVER1[6]]}, "priority": 20}],
                "lans": [{"interface": "br-lan", "address": [f"{LAN[4]}/24", f"{LAN[6]}/64"]}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": "off"},
                "forwards": [*({"network": kind, "port": FORWARD, "to": DESK[4], "to_port": SITE} for kind in KINDS),
                             *({"network": kind, "port": SITE, "to": DESK[6]} for kind in KINDS)],
                "open_tcp": [OPEN["tcp"]],
                "open_udp": [OPEN["udp"]],
                **more,
            },
        }))  # fmt: skip

    def up(self, **more: Any) -> None:
        self.configure(**more)
        self.start()
        poll(self.ready, self.process.told(), 40)

    def ready(self) -> bool:
        if not self.process.running:
            raise AssertionError(self.process.told())
        told = self.status()
        tentative = self.gateway.run(["ip", "-6", "addr", "show", "tentative"]).out
        routes = [self.gateway.run(["ip", family, "route"]).out for family in ("-4", "-6")]
        return (
            told.get("state") == "running"
            and told["steering"]
            and all(text.count("default via") == 2 for text in routes)
            and not tentative
        )

    def reload(self, **more: Any) -> None:
        """Returns when it is in force."""
        self.configure(**more)
        told = self.process.told().count("configuration applied")
        os.kill(self.process.pid, signal.SIGHUP)
        poll(lambda: self.process.told().count("configuration applied") > told, self.process.told())

    def lines(self, *lines: str) -> None:
        """Shell lines on the gateway, each as it stands."""
        for line in lines:
            done = self.gateway.run(["sh", "-c", line], environment=self.foreign)
            assert done.ok, f"{line}: {done.err}"

    def nft(self, text: str) -> None:
        done = self.gateway.run(["nft", "-f", "-"], stdin=text.encode())
        assert done.ok, done.err

    def open(self, kind: str, host: Host, address: str, port: int = SITE, timeout: float = 5) -> socket.socket:
        """A connected socket of ``host``."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = host.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        sock.settimeout(timeout)
        try:
            sock.connect((address, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def ask(self, kind: str, host: Host, address: str, port: int = SITE, timeout: float = 5) -> str:
        """Who answers, and whom it saw; "" where nobody does. Asked twice by UDP: the first packet may be lost where
        a neighbour is not resolved yet."""
        tries = 2 if kind == "udp" else 1
        with contextlib.suppress(OSError), self.open(kind, host, address, port, timeout / tries) as sock:
            for _ in range(tries):
                sock.send(b"?")
                with contextlib.suppress(TimeoutError):
                    return " ".join(sock.recv(200).decode().split()[:2])
        return ""

    def far(self, kind: str, address: str, port: int = SITE, timeout: float = 5) -> str:
        return self.ask(kind, self.server, address, port, timeout)

    def entries(self, value: int = 0, mask: int = 0) -> list[Any]:
        return list(self.gateway.call(lambda: conntrack.dump(value, mask)))

    def findings(self) -> dict[str, dict[str, Any]]:
        """What ``gateway doctor`` finds, by name."""
        command = [sys.executable, "-m", "gateway", "doctor", "--json"]
        done = self.gateway.run(command, cwd=ROOT, timeout=60, environment=self.foreign)
        return {one["name"]: one for one in done.json()["findings"]}

    def remedies(self, name: str) -> list[str]:
        """The lines that doctor gives for a finding."""
        text = self.findings()[name]["remedy"]
        return text.split("; ") if text else []

    def beside(self, neighbour: Neighbour) -> Callable[[], None]:
        """Let it move in; what lets it move out."""
        bridge, net = neighbour.bridge, neighbour.network
        self.lines(
            f"ip link add {bridge} type bridge",
            f"ip link set guest0 master {bridge} up",
            f"ip addr add {net}.1/24 dev {bridge}",
            f"ip addr add {GUEST6}1/64 dev {bridge}",
            f"ip link set {bridge} up",
        )
        for words in (
            f"addr add {net}.2/24 dev eth0",
            f"addr add {GUEST6}2/64 dev eth0 nodad",
            f"route replace default via {net}.1",
            f"-6 route replace default via {GUEST6}1",
        ):
            self.guest.run(["ip", *words.split()], check=True)
        self.lines(*neighbour.lines)
        for file in neighbour.files:
            program = "nft -f -" if file.suffix == ".nft" else f"{file.suffix[1:]}-restore"
            done = self.gateway.run(program.split(), stdin=file.read_bytes(), environment=self.foreign)
            assert done.ok, done.err

        def out() -> None:
            self.lines(*(f"nft delete table {table}" for table in neighbour.tables), *neighbour.undo)
            self.lines(f"ip link del {bridge}")
            self.guest.run(["ip", "addr", "flush", "dev", "eth0", "scope", "global"], check=True)

        return out
