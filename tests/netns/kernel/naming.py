"""A whole gateway whose rules go by names: a client that asks and connects, a name server and sites on the other side.

A site answers which way a flow has come, ``far`` through its HTTP proxy; the class in conntrack says whose it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from gateway.kernel import conntrack, mark
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import End, Host, Link, Route, Topology
from gateway.service.control import ask
from tests.greetings import hello

from .whole import ROOT, Whole

CLIENTS = {4: ("192.168.7.2", "192.168.7.3"), 6: ("2001:db8:1::2", "2001:db8:1::3")}
SITES = {4: "198.51.100.", 6: "2001:db8:2::"}
RESOLVER = "203.0.113.2"
"""Of the gateway."""
ASKED = ("192.0.2.53", 53)
"""By clients; nobody is there."""
PORTS = (80, 443, 853, 7000)
PROXY = 3128
# A client that stalls is waited for.
RULES = [{"action": "sniff", "timeout": "3s"}, {"domain_suffix": "far.example", "outbound": "far"}]
CLASSES = {mark.USER: "user", mark.DIRECT: "kernel", mark.SNIFF: "sniff"}
IMPATIENT = {"SHORTEST": 1, "GRACE": 2}
"""Seconds of ``route.learned``, so that a test sees names expire."""
PROGRAM = """
import json, sys
from gateway import steering
from gateway.cli import main
from gateway.route import learned, shown
for name, value in json.loads(sys.argv.pop(1)).items():
    setattr(learned, name, value)
    steering.EXPIRY, shown.LASTS = 0.2, 3
sys.exit(main())
"""

TOPOLOGY = Topology(
    "names",
    (
        Host("client", addresses={"eth0": tuple(f"{one}/{24 if ':' not in one else 64}" for both in CLIENTS.values()
                                                for one in both)},
             routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1"))),
        Host("gateway", addresses={"lan0": (), "wan0": ()}),
        Host("server", addresses={"eth0": (f"{RESOLVER}/24", "2001:db8:3::2/64")},
             routes=(Route("default", "203.0.113.1"), Route("default6", "2001:db8:3::1"))),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
)  # fmt: skip


class Far:
    """Answers on the server: names from ``zone`` ({(name, type): record texts, or aliases as (name, "CNAME")}), and on
    ``PORTS`` of every site which way one has come."""

    def __init__(self, host: Any) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        self.ttl = 60
        for prefix in ("198.51.100.0/24", "2001:db8:2::/64"):
            host.run(["ip", "route", "add", "local", prefix, "dev", "lo"], check=True)
        self._socks = [self._bound(host, family, kind, port) for family in (socket.AF_INET, socket.AF_INET6)
                       for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM) for port in (*PORTS, PROXY)]  # fmt: skip
        self._proxied: set[int] = set()
        self._names = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._names.bind((RESOLVER, 53))
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _bound(self, host: Any, family: int, kind: int, port: int) -> socket.socket:
        sock: socket.socket = host.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, 78, 1)  # IPV6_FREEBIND: sites are no addresses of an interface
        else:
            sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: answer from the address that was asked
        sock.bind(("", port))
        if kind == socket.SOCK_STREAM:
            sock.listen(128)
        return sock

    def _serve(self) -> None:
        known = {sock.fileno(): sock for sock in (*self._socks, self._names)}
        watch = select.epoll()
        for number in (*known, self._stop):
            watch.register(number, select.EPOLLIN)
        while True:
            for number, _ in watch.poll():
                if number == self._stop:
                    for sock in known.values():
                        sock.close()
                    return
                sock = known[number]
                if sock is self._names:
                    data, source = sock.recvfrom(4096)
                    sock.sendto(self._answer(data), source)
                elif sock.type == socket.SOCK_DGRAM:
                    _, extra, _, source = sock.recvmsg(2000, 200)
                    with contextlib.suppress(OSError):
                        sock.sendmsg([b"direct"], [(*one[:2], one[2]) for one in extra], 0, source)
                elif sock in self._socks:
                    flow, _ = sock.accept()
                    known[flow.fileno()] = flow
                    watch.register(flow.fileno(), select.EPOLLIN)
                elif not self._told(sock):
                    watch.unregister(number)
                    self._proxied.discard(number)
                    known.pop(number).close()

    def _told(self, sock: socket.socket) -> bool:
        """Whether more is to come."""
        with contextlib.suppress(OSError):
            data = sock.recv(1000)
            if data.startswith(b"CONNECT "):
                self._proxied.add(sock.fileno())
                sock.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                return True
            if data:
                sock.sendall(b"far" if sock.fileno() in self._proxied else b"direct")
        return False

    def _answer(self, data: bytes) -> bytes:
        made = dns.message.make_response(dns.message.from_wire(data))
        question = made.question[0]
        name, kind = str(question.name).rstrip(".").lower(), dns.rdatatype.to_text(question.rdtype)
        while target := self.zone.get((name, "CNAME")):
            made.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", "CNAME", *target))
            name = target[0].rstrip(".")
        if texts := self.zone.get((name, kind)):
            made.answer.append(dns.rrset.from_text(f"{name}.", self.ttl, "IN", kind, *texts))
        elif not any(one == name for one, _ in self.zone):
            made.set_rcode(dns.rcode.NXDOMAIN)
        return made.to_wire()

    def close(self) -> None:
        os.write(self._stopped, b"x")
        self._thread.join(10)
        os.close(self._stop)
        os.close(self._stopped)


class Naming(Whole):
    """``constants``: of ``route.learned`` in that process."""

    def __init__(self, lab: Lab, constants: Mapping[str, int] | None = None) -> None:
        super().__init__(lab)
        self._constants = constants
        self.rules: list[dict[str, Any]] = RULES
        self.far = Far(self.server)
        self.write()
        self.start()
        poll(self.ready, "the gateway does not steer", 60)

    def start(self) -> None:
        if self._constants is None:
            super().start()
            return
        command = [sys.executable, "-c", PROGRAM, json.dumps(dict(self._constants)), "run", "-c", str(self.path),
                   "--instance", self.instance]  # fmt: skip
        self.process = self.gateway.popen(command, cwd=ROOT)

    def write(self, kernel: Mapping[str, Any] | None = None, **gateway: Any) -> None:
        own = {"cgroup": str(self.gateway.group), "offload": "off"}
        self.path.write_text(json.dumps({
            "dns": {"servers": [{"type": "udp", "tag": "isp", "server": RESOLVER}]},
            "outbounds": [
                {"type": "direct", "tag": "direct"},
                {"type": "http", "tag": "far", "server": RESOLVER, "server_port": PROXY},
            ],
            "route": {"rules": self.rules},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {
                    "address": ["203.0.113.1/24", "2001:db8:3::1/64"],
                    "gateway": ["203.0.113.2", "2001:db8:3::2"]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
                "kernel": {**own, **(kernel or {})},
                **gateway,
            },
        }))  # fmt: skip

    def ready(self) -> bool:
        told = self.told()
        if told.get("state") != "running" or not told["steering"]:
            return False
        routes = [self.gateway.run(["ip", family, "route"]).out for family in ("-4", "-6")]
        tentative = self.gateway.run(["ip", "addr", "show", "tentative"]).out
        return all("default via" in one for one in routes) and "inet6" not in tentative

    @property
    def folder(self) -> Path:
        return Path("/run/gateway") / self.instance

    def told(self) -> dict[str, Any]:
        """Status, by the control socket."""
        try:
            return ask(self.folder, {"command": "status"})
        except Exception:
            assert self.process.running, self.process.told()
            return {}

    def table(self, name: str) -> int:
        """How full a table of names is."""
        return int(self.told()["names"][name]["now"])

    def command_alone(self, *words: str) -> Any:
        """Of no instance."""
        return self.gateway.run([sys.executable, "-m", "gateway", *words], cwd=ROOT, timeout=60)

    def reload(self, kernel: Mapping[str, Any] | None = None, **gateway: Any) -> None:
        self.write(kernel, **gateway)
        answer = ask(self.folder, {"command": "reload"})
        assert answer["ok"], answer

    def explain(self, address: str, client: str, port: int = 80) -> dict[str, Any]:
        request = {"command": "explain", "destination": address, "port": port, "source": client}
        return ask(self.folder, request)

    # -- what a client does

    def ask(self, name: str, kind: str = "A", client: int = 0) -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        with self.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.bind((CLIENTS[4][client], 0))
            sock.sendto(query.to_wire(), ASKED)
            read = dns.message.from_wire(sock.recv(4096))
        assert query.is_response(read)
        return read

    def resolve(self, name: str, address: str, client: int = 0) -> None:
        """``name`` has that address, and the client is told so."""
        kind = "AAAA" if ":" in address else "A"
        self.far.zone[name, kind] = [address]
        found = [str(record) for one in self.ask(name, kind, client).answer for record in one]
        assert address in found, found

    def connect(
        self, address: str, host: str, client: int = 0, port: int = 80, *, tls: bool = False
    ) -> tuple[str, str]:  # fmt: skip
        """(Way, class): ``far`` or ``direct``; ``kernel``, ``sniff`` or ``user``. ``host`` is what the client calls it,
        in a request, or as SNI."""
        family = 6 if ":" in address else 4
        said = hello(host) if tls else f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        with self.client.socket(socket.AF_INET6 if family == 6 else socket.AF_INET) as sock:
            sock.settimeout(20)
            sock.bind((CLIENTS[family][client], 0))
            sock.connect((address, port))
            sock.sendall(said)
            return sock.recv(100).decode(), self.classes(sock.getsockname()[1])[address]

    def classes(self, port: int = 0) -> dict[str, str]:
        """Class by destination, of flows from that port."""
        entries = self.gateway.call(lambda: conntrack.dump())
        return {
            str(entry.destination.ip): CLASSES.get(entry.mark & mark.CLASS, "none")
            for entry in entries
            if port in (0, entry.source.port) and entry.mark & mark.CLASS != mark.NAMES
        }

    def kernel_flows(self) -> set[tuple[str, int]]:
        """Destination and source port of direct flows."""
        entries = self.gateway.call(lambda: conntrack.dump(mark.DIRECT, mark.CLASS))
        return {(str(entry.destination.ip), entry.source.port) for entry in entries}

    def close(self) -> None:
        self.far.close()
        super().close()


@contextlib.contextmanager
def naming(constants: Mapping[str, int] | None = None) -> Iterator[Naming]:
    with Lab(TOPOLOGY) as lab, contextlib.closing(Naming(lab, constants)) as found:
        yield found
