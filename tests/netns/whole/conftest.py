"""client - gateway - server, and the whole gateway on it, as its users run it."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from gateway.lab.client.dials import Target
from gateway.lab.dials import Made
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import End, Link, Route, Service, Topology
from gateway.lab.topology import Host as Plan
from gateway.service.control import alive, ask
from tests.instances import forget

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[3]
DIRECT = ("198.51.100.1", "2001:db8:2::1")
PROXIED = ("198.51.100.2", "2001:db8:2::2")
SECOND = ("198.51.100.3", "2001:db8:2::3")
"""Proxied too. Nothing listens there, nor at the next."""
THIRD = ("198.51.100.4", "2001:db8:2::4")
LEASED_DNS = "203.0.113.2"
KERNEL = ("203.0.113.1", "2001:db8:1::2")
USERSPACE = ("203.0.113.9", "2001:db8:3::9")
"""Whom the server sees of a flow of the client that the kernel forwards, or that userspace carries."""
TARGETS = tuple(
    Target(f"{way} {kind}{'46'[family]}", kind, sites[family], 7)
    for kind in ("tcp", "udp") for family in (0, 1) for way, sites in (("direct", DIRECT), ("proxied", PROXIED))
)  # fmt: skip
ECHO = """
import socket, sys, threading
def stream(flow):
    with flow:
        while data := flow.recv(1000):
            flow.sendall(f"{flow.getpeername()[0]} ".encode() + data)
def listen(sock):
    while True:
        threading.Thread(target=stream, args=(sock.accept()[0],), daemon=True).start()
def datagrams(sock):
    while True:
        data, source = sock.recvfrom(1000)
        sock.sendto(f"{source[0]} ".encode() + data, source)
for host in sys.argv[2:]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    threading.Thread(target=listen, args=(socket.create_server((host, int(sys.argv[1])), family=family),)).start()
    udp = socket.socket(family, socket.SOCK_DGRAM)
    udp.bind((host, int(sys.argv[1])))
    threading.Thread(target=datagrams, args=(udp,)).start()
"""


def echo(name: str, port: int, *hosts: str) -> Service:
    return Service(name, "echo", (sys.executable, "-c", ECHO, str(port), *hosts), ready=(("tcp", port), ("udp", port)))


def topology() -> Topology:
    resolver = ("dnsmasq", "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file",
                f"--listen-address={LEASED_DNS}", "--bind-interfaces", "-A/site.example/198.51.100.1")  # fmt: skip
    return Topology(
        "fail",
        (
            Plan(
                "client",
                addresses={"eth0": ("192.168.7.2/24", "2001:db8:1::2/64")},
                routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1")),
            ),
            Plan("gateway", addresses={"lan0": (), "wan0": ()}),
            Plan(
                "server",
                addresses={
                    "eth0": ("203.0.113.2/24", "2001:db8:3::2/64"),
                    "lo": tuple(f"{site}/{128 if ':' in site else 32}" for site in DIRECT + PROXIED + SECOND + THIRD),
                },
                routes=(Route("default6", "2001:db8:3::1"),),
            ),
        ),
        (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
        (
            echo("server", 7, *DIRECT, *PROXIED),
            echo("client", 80, "192.168.7.2", "2001:db8:1::2"),
            Service("server", "dns", resolver, ready=(("udp", 53),)),
        ),
    )


class Whole:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client, self.gateway, self.server = (lab.host(name) for name in ("client", "gateway", "server"))
        self.instance = f"lab-{lab.id}"
        self.folder = Path("/run/gateway", self.instance)
        self.program: tuple[str, ...] = (sys.executable, "-m", "gateway")
        self.rules: list[dict[str, Any]] = []
        self.outbounds: list[dict[str, Any]] = []
        # A direct outbound that says from where: the kernel cannot do that, so its flows go to userspace.
        self.far = {"type": "direct", "inet4_bind_address": USERSPACE[0], "inet6_bind_address": USERSPACE[1]}
        self.process: Process | None = None
        self.numbers = itertools.count(random.randrange(50000))

    def write(self, fail: str, **more: Any) -> Path:
        """``more``: other fields of the ``gateway`` object."""
        value: dict[str, Any] = {
            "dns": {"servers": [{"type": "udp", "tag": "isp", "server": LEASED_DNS}]},
            "outbounds": [{"type": "direct", "tag": "direct"}, {"tag": "far", **self.far}, *self.outbounds],
            "route": {"rules": [*self.rules, {"ip_cidr": [*PROXIED, *SECOND], "outbound": "far"}], "final": "direct"},
            "gateway": {
                "fail": fail,
                "uplinks": [{"interface": "wan0", "static": {
                    "address": ["203.0.113.1/24", "203.0.113.9/24", "2001:db8:3::1/64", "2001:db8:3::9/64"],
                    "gateway": ["203.0.113.2", "2001:db8:3::2"], "dns": [LEASED_DNS]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
                "kernel": {"cgroup": str(self.gateway.group)},
                "forwards": [{"port": 8080, "to": "192.168.7.2", "to_port": 80},
                             {"port": 80, "to": "2001:db8:1::2"}],
                **more,
            },
        }  # fmt: skip
        path = self.lab.folder / "gateway.json"
        path.write_text(json.dumps(value))
        return path

    def command(self, *words: str) -> Any:
        return self.gateway.run(
            [sys.executable, "-m", "gateway", *words, "--instance", self.instance], cwd=ROOT, timeout=60
        )

    def begin(self, fail: str, **more: Any) -> Process:
        """Start without waiting for anything."""
        path = self.write(fail, **more)
        self.process = self.gateway.popen([*self.program, "run", "-c", path, "--instance", self.instance], cwd=ROOT)
        return self.process

    def start(self, fail: str, **more: Any) -> None:
        self.process = self.begin(fail, **more)
        assert until(self.steers, 60), self.process.told()

    def steers(self) -> bool:
        if not alive(self.folder / "control.sock"):
            return False
        found = ask(self.folder, {"command": "status"})
        online = found["ok"] and found["state"] == "running" and all(one["elected"] for one in found["uplinks"])
        return bool(online and found["steering"])

    def counted(self) -> dict[str, int]:
        """Flows by verdict since the start."""
        listed = self.gateway.run(["nft", "-j", "list", "counters", "table", "inet", "gateway"], check=True).json()
        return {one["counter"]["name"]: one["counter"]["packets"] for one in listed["nftables"] if "counter" in one}

    def flows(self) -> list[dict[str, Any]]:
        found = ask(self.folder, {"command": "flows"})
        assert found["ok"], found
        rows: list[dict[str, Any]] = found["flows"]
        return rows

    def end(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)
        self.process.wait(30)

    def reload(self, fail: str, **more: Any) -> None:
        self.write(fail, **more)
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGHUP)

    def tables(self) -> set[str]:
        return {line.split()[-1] for line in self.gateway.run(["nft", "list", "tables"], check=True).out.splitlines()}

    def open(self, kind: str, host: Host, site: str, port: int = 7) -> socket.socket:
        """A connected socket of ``host``."""
        family = socket.AF_INET6 if ":" in site else socket.AF_INET
        sock = host.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
        sock.settimeout(5)
        try:
            sock.connect((site, port))
        except BaseException:
            sock.close()
            raise
        return sock

    def ask(self, kind: str, host: Host, site: str, port: int = 7) -> str:
        """Whom the far end saw."""
        with self.open(kind, host, site, port) as sock:
            return talk(sock)

    def works(self, kind: str, host: Host, site: str, port: int = 7) -> bool:
        try:
            return bool(self.ask(kind, host, site, port))
        except OSError:
            return False

    def refused(self, kind: str, host: Host, site: str, port: int = 7) -> bool:
        """Told so, and not left to wait."""
        try:
            self.ask(kind, host, site, port)
        except TimeoutError:
            return False
        except OSError:
            return True
        return False

    def pings(self, site: str) -> bool:
        """An echo request of the client is answered."""
        six = ":" in site
        kind, wanted = (128, 129) if six else (8, 0)
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        # A flow of its own each time. The kernel fills in the checksum of ICMPv6 only.
        number = next(self.numbers)
        head = struct.pack("!BBHHH", kind, 0, 0 if six else 0xFFFF - (kind * 256 + number + 1), number, 1)
        with self.client.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(2)
            sock.connect((site, 0))
            sock.send(head)
            try:
                while sock.recv(1000)[0 if six else 20] != wanted:
                    pass
            except OSError:
                return False
        return True

    def names(self, server: str = "192.168.7.1") -> str:
        return str(
            self.client.run(["dig", "+short", "+time=2", "+tries=2", f"@{server}", "site.example"]).out
        ).strip()  # fmt: skip


def leaked(made: Made) -> bool:
    """A dial to what the rules proxy that was answered directly, or the other way round."""
    way, kind = made.name.split()
    family = int(kind.endswith("6"))
    return made.answered and made.said != (KERNEL if way == "direct" else USERSPACE)[family]


def refused(made: Made) -> bool:
    """TCP is told at once each time; UDP as often as the kernel's own limit of ICMP errors lets it be told."""
    return made.said == "refused" or (made.said == "silent" and " udp" in made.name)


def keepers(whole: Whole) -> list[int]:
    word = f"--keeper={whole.folder}".encode()
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and word in open(f"/proc/{name}/cmdline", "rb").read().split(b"\0"):  # noqa: SIM115
                found.append(int(name))
        except OSError:
            continue
    return found


def talk(sock: socket.socket) -> str:
    sock.send(b"?")
    return sock.recv(200).decode().split()[0]


def ended(sock: socket.socket) -> bool:
    """By an error or by the end of the stream."""
    try:
        sock.send(b"?")
        return not sock.recv(100)
    except TimeoutError:
        return False
    except OSError:
        return True


def until(work: Callable[[], T], seconds: float = 20) -> T:
    """``work()`` as soon as it is true, or at last whatever it is."""
    end = time.monotonic() + seconds
    while not (found := work()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(topology()) as lab:
        yield lab


@pytest.fixture
def whole(lab: Lab) -> Iterator[Whole]:
    whole = Whole(lab)
    try:
        yield whole
    finally:
        if whole.process is not None and whole.process.running:
            whole.end(signal.SIGKILL)
        done = whole.command("down")
        forget(whole.instance)
        assert done.ok, done.err
        assert whole.tables() == set()
        # Flows of this test would be old ones to the next, where a port is used again.
        whole.gateway.run(["conntrack", "-F"], check=True)
