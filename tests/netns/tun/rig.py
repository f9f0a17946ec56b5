"""client and guest - gateway - server, a program with a tun inbound on the gateway, and who carries what.

Nobody masquerades: a server says who asked it. ``MARKED`` is an address of the gateway that only the outbound of the
tested program binds to, so that its flows are told apart from those of the gateway's kernel.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from gateway.core.errors import GatewayError
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process, User
from gateway.lab.stage import poll
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan
from gateway.protocol.tun import codec
from tests.instances import forget

ROOT = Path(__file__).resolve().parents[3]
SITES = tuple(f"198.51.100.{n}" for n in range(1, 5)) + tuple(f"2001:db8:2::{n}" for n in range(1, 5))
NEAR = ("203.0.113.2", "2001:db8:3::2")
"""The server's own addresses, in a network of the gateway's."""
MARKED = {4: "192.0.2.9", 6: "2001:db8:5::9"}
CLIENT = {4: "192.168.7.2", 6: "2001:db8:1::2"}
GUEST = {4: "192.168.8.2", 6: "2001:db8:4::2"}
OWN = {4: "203.0.113.1", 6: "2001:db8:3::1"}
MAC = "02:00:00:00:07:02"
PORTS = (53, 80, 7777)
TUN = {
    "type": "tun",
    "tag": "tun-in",
    "interface_name": "tun0",
    "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
    "auto_route": True,
}
MODES = {"route": {}, "redirect": {"auto_redirect": True}}

TOPOLOGY = Topology(
    "tun",
    (
        Plan(
            "client",
            addresses={"eth0": (f"{CLIENT[4]}/24", f"{CLIENT[6]}/64")},
            routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1")),
        ),
        Plan(
            "guest",
            addresses={"eth0": (f"{GUEST[4]}/24", f"{GUEST[6]}/64")},
            routes=(Route("default", "192.168.8.1"), Route("default6", "2001:db8:4::1")),
        ),
        Plan(
            "gateway",
            addresses={
                "lan0": ("192.168.7.1/24", "2001:db8:1::1/64"),
                "lan1": ("192.168.8.1/24", "2001:db8:4::1/64"),
                "wan0": (f"{OWN[4]}/24", f"{OWN[6]}/64"),
                "lo": (f"{MARKED[4]}/32", f"{MARKED[6]}/128"),
            },
            routes=(Route("default", NEAR[0]), Route("default6", NEAR[1])),
            sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"},
        ),
        Plan(
            "server",
            addresses={
                "eth0": (f"{NEAR[0]}/24", f"{NEAR[1]}/64"),
                "lo": tuple(f"{site}/{128 if ':' in site else 32}" for site in SITES),
            },
            routes=(Route("default", OWN[4]), Route("default6", OWN[6])),
        ),
    ),
    (
        Link(End("client", "eth0", MAC), End("gateway", "lan0")),
        Link(End("guest", "eth0"), End("gateway", "lan1")),
        Link(End("gateway", "wan0"), End("server", "eth0")),
    ),
)
ASK = """
import socket, sys
kind, site, port = sys.argv[1:]
sock = socket.socket(socket.AF_INET6 if ":" in site else socket.AF_INET,
                     socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
sock.settimeout(5)
sock.connect((site, int(port)))
sock.send(b"?")
print(sock.recv(200).decode())
"""


def family(site: str) -> int:
    return 6 if ":" in site else 4


class Server:
    """Answers TCP and UDP at every address, and an echo request in its own words: with who asked. TCP that begins with
    "!" gets all its bytes back."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._stop = threading.Event()
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        for site in (*SITES, *NEAR):
            for port in PORTS:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = host.socket(socket.AF_INET6 if ":" in site else socket.AF_INET, kind)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((site, port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen(16)
                    self._socks.append(sock)
        self._read, self._write = os.pipe()
        self._start(self._serve)

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        thread.start()
        self._threads.append(thread)

    def _serve(self) -> None:
        known = {sock.fileno(): sock for sock in self._socks}
        watch = select.poll()
        for number in (*known, self._read):
            watch.register(number, select.POLLIN)
        while True:
            for number, _ in watch.poll():
                if number == self._read:
                    return
                sock = known[number]
                if sock.type == socket.SOCK_STREAM:
                    self._start(self._talk, sock.accept()[0])
                else:
                    _, name = sock.recvfrom(2000)
                    sock.sendto(name[0].encode(), name)

    def _talk(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(60)
            try:
                data = sock.recv(65536)
                if not data.startswith(b"!"):
                    while data:
                        sock.sendall(sock.getpeername()[0].encode())
                        data = sock.recv(100)
                while data:
                    sock.sendall(data)
                    data = sock.recv(65536)
            except OSError:
                pass

    def close(self) -> None:
        os.write(self._write, b"x")
        for thread in self._threads:
            thread.join(70)
        for sock in self._socks:
            sock.close()
        for fd in (self._read, self._write):
            os.close(fd)


class Rig:
    def __init__(self, lab: Lab) -> None:
        self.lab, self.instance = lab, f"lab-{lab.id}"
        self.client, self.guest, self.gateway, self.server = map(lab.host, ("client", "guest", "gateway", "server"))
        self._server = Server(self.server)

    # -- the tested program

    @contextmanager
    def ours(self, tun: Mapping[str, Any], **parts: Any) -> Iterator[Ours]:
        """Our program with one tun inbound; ``parts`` are other objects of the configuration."""
        with closing(Ours(self, config([TUN | dict(tun)], **parts))) as ours:
            ours.start()
            yield ours

    # -- who asks whom

    def ask(self, host: Host, kind: str, site: str, port: int = 80, user: User | None = None) -> str:
        """Who has asked, as the server sees it; "" where nothing came back."""
        command = [sys.executable, "-c", ASK, kind, site, str(port)]
        return host.run(command, user=user).out.strip()

    def carried(self, host: Host, kind: str, site: str, port: int = 80, user: User | None = None) -> bool:
        """Whether the tested program carried it; GatewayError where nobody did."""
        if kind == "icmp":
            return self.ping(host, site) == MARKED[family(site)]
        found = self.ask(host, kind, site, port, user)
        if not found:
            raise GatewayError(f"{host.name} {kind} {site} {port}: no answer")
        return found == MARKED[family(site)]

    def connect(self, host: Host, site: str, port: int = 80) -> socket.socket:
        sock = host.socket(socket.AF_INET6 if ":" in site else socket.AF_INET)
        sock.settimeout(30)
        sock.connect((site, port))
        return sock

    def ping(self, host: Host, site: str, hops: int = 64, wait: float = 5) -> str:
        """Who has asked, as the server sees it: "" where no answer came, "?" where one came that the server did not
        send, "unreachable CODE from ADDRESS" for an ICMP error."""
        six = family(site) == 6
        kind, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
        with (
            host.socket(kind, socket.SOCK_RAW, protocol) as near,
            self.server.socket(kind, socket.SOCK_RAW, protocol) as far,
        ):
            near.settimeout(wait)
            far.settimeout(0.2)
            level, option = (
                (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if six else (socket.IPPROTO_IP, socket.IP_TTL)
            )
            near.setsockopt(level, option, hops)
            # A ping that nobody has seen before: to conntrack one with the same identifier is a running flow.
            said = codec.Echo(int.from_bytes(os.urandom(2)), next_sequence(), os.urandom(32))
            version = family(site)
            near.sendto(codec.write_echo(version, codec.ECHO[version], said), (site, 0))
            return self._heard(near, said, version, site, wait) and self._seen(far, said, version)

    def _heard(self, near: socket.socket, said: codec.Echo, version: int, site: str, wait: float) -> str:
        end = time.monotonic() + wait
        while time.monotonic() < end:
            try:
                data, name = near.recvfrom(65536)
            except TimeoutError:
                return ""
            if version == 4:
                data = data[(data[0] & 15) * 4 :]
            if codec.read_echo(data, codec.ECHO_REPLY[version]) == said and name[0] == site:
                return "answer"
            quoted = codec.quoted_echo(data, version)
            if quoted and quoted[1].identifier == said.identifier and quoted[1].sequence == said.sequence:
                raise Unreachable(f"{data[0]}/{data[1]} from {name[0]}")
        return ""

    def _seen(self, far: socket.socket, said: codec.Echo, version: int) -> str:
        while True:
            try:
                data, name = far.recvfrom(65536)
            except TimeoutError:
                return "?"
            if version == 4:
                data = data[(data[0] & 15) * 4 :]
            found = codec.read_echo(data, codec.ECHO[version])
            if found is not None and found.payload == said.payload:
                return str(name[0])

    def nft(self, *words: str) -> str:
        return self.gateway.run(["nft", *words]).out

    def state(self) -> dict[str, str]:
        """What of the gateway's network a tun inbound might leave behind."""
        commands = {
            "rules4": "ip rule", "rules6": "ip -6 rule", "tables": "ip route show table all type unicast",
            "local": "ip route show table all type local", "nft": "nft list tables", "links": "ip -o link",
        }  # fmt: skip
        return {name: self.gateway.run(words.split()).out for name, words in commands.items()}

    def close(self) -> None:
        self._server.close()


class Unreachable(Exception):
    """An ICMP error came back: its type, code and sender."""


_sequences = iter(range(1, 1 << 16))


def next_sequence() -> int:
    return next(_sequences)


def config(inbounds: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    """All direct, from ``MARKED``."""
    direct = {"type": "direct", "tag": "direct", "inet4_bind_address": MARKED[4], "inet6_bind_address": MARKED[6]}
    return {"log": {"level": "info"}, "inbounds": inbounds, "outbounds": [direct], **parts}


class Ours:
    """Our program; ``value`` is its configuration."""

    def __init__(self, rig: Rig, value: dict[str, Any], name: str = "") -> None:
        self.rig, self.value = rig, value
        self.instance = rig.instance + name
        self.path = rig.lab.folder / f"ours{name}.json"
        self.process: Process | None = None

    def command(self, *words: str) -> Any:
        command = [sys.executable, "-m", "gateway", *words, "--instance", self.instance]
        return self.rig.gateway.run(command, cwd=ROOT, timeout=60)

    def start(self) -> None:
        self.path.write_text(json.dumps(self.value))
        command = [sys.executable, "-m", "gateway", "run", "-c", str(self.path), "--instance", self.instance]
        process = self.process = self.rig.gateway.popen(command, cwd=ROOT)
        poll(lambda: not process.running or "gateway: started" in self.told(), "it does not start", 30)
        assert process.running, process.told()

    def told(self) -> str:
        assert self.process is not None
        return self.process.err.read_text()

    def reload(self) -> str:
        """Apply ``value``; the line in which it says how that went."""
        assert self.process is not None
        before = len(self.told())
        self.path.write_text(json.dumps(self.value))
        self.process.signal(1)

        def said() -> str:
            lines = self.told()[before:].splitlines()
            return next((line for line in lines if "configuration applied" in line or "configuration kept" in line), "")

        return str(poll(said, "it does not say that it has reloaded", 30))

    def kill(self) -> None:
        """SIGKILL, to the program and to nobody else."""
        assert self.process is not None
        self.process.signal(9)
        self.process.wait(10)

    def stop(self) -> None:
        assert self.process is not None
        if self.process.running:
            self.process.stop(30)

    def close(self) -> None:
        self.stop()
        done = self.command("down")
        forget(self.instance)
        assert done.ok, done.err
