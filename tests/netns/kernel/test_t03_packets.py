"""T3, with packets: random rule lists in a whole gateway, random flows through it. The kernel marks each flow as the
judge of tests/unit/route says, and each ends where the engine sends it.

The addresses are those of brute.py, so the lists are its too. ``GATEWAY_SEED=N`` tries the rule list of that seed.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest

from gateway.core.address import Address
from gateway.core.flow import Flow
from gateway.kernel import conntrack, mark
from gateway.kernel.plan import Verdict
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import End, Host, Link, Route, Topology
from tests.greetings import hello, initial
from tests.interop.teller import Teller
from tests.interop.test_rule_items import http, question
from tests.unit.route import brute
from tests.unit.route.judge import Judge, Shown, decide

from .conftest import Server
from .whole import Whole

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.xdist_group("t03-packets")]
SLOW, SOAK, FLOWS = 32, 300, 10
"""Rule lists of each stage, and flows of each list."""
SIX = 45
"""Prefix length that holds every IPv6 client and no site."""
TOPOLOGY = Topology(
    "t03",
    (
        Host(
            "client",
            addresses={"eth0": tuple(f"{one}/{SIX if ':' in one else 16}" for one in brute.SOURCES)},
            routes=(Route("default", "192.168.0.1"), Route("default6", "2001:db8:8::1")),
        ),
        Host("gateway", addresses={"lan0": (), "wan0": ()}),
        Host(
            "server",
            addresses={
                "eth0": ("203.0.113.2/24", "2001:db8:3::2/64"),
                "lo": tuple(f"{site}/{128 if ':' in site else 32}" for site in (*brute.V4, *brute.V6)),
            },
            routes=(Route("default", "203.0.113.1"), Route("default6", "2001:db8:3::1")),
        ),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
)
WORLD = brute.World(
    without=frozenset(key for key in brute.ROUTE if key.startswith(("process", "user", "group", "cgroup")))
)
"""Programs have tests of their own, with processes of each kind (test_without_btf.py, tests/bpf)."""
TELLERS = {"vps": 1081, "vps2": 1082, "urltest": 1083}
PORTS = tuple(port for port in brute.PORTS if port != 53)
"""Without the one that the gateway takes for its own DNS."""
SITES = (*brute.V4, *brute.V6)
OWNERS: dict[str, tuple[str, ...]] = {
    "192.0.2.127": ("a.x",), "192.0.2.128": ("b.x",), "192.0.2.255": ("x",), "198.51.100.6": ("a.y", "c.z"),
    "198.51.100.8": ("b.y", "c.a.x"), "10.1.2.3": ("a.b.x", "q.q"), "2001:db8:0:ffff:ffff:ffff:ffff:ffff": ("a.x",),
    "2001:db8:1::": ("a.y", "c.z"), "fd00::1": ("b.y", "c.a.x"),
}  # fmt: skip
"""Which names the client resolves to a site, in this order; of the others nobody knows a name."""
CLASSES = {Verdict.DIRECT: mark.DIRECT, Verdict.USER: mark.USER, Verdict.SNIFF: mark.SNIFF}
SPOKEN: dict[str, dict[str, Callable[[str], bytes]]] = {
    "tcp": {"tls": hello, "http": http, "": lambda name: b"\0?"},
    "udp": {"quic": lambda name: initial(name)[0], "": lambda name: b"\0?"},
}
"""DNS is spoken on port 53 alone: what mode strict believes."""


class Sent(NamedTuple):
    """A flow, and what comes of it: ``told`` by whoever answers, the ``kind`` of its conntrack entry (0: none)."""

    key: brute.Key
    flow: Flow
    shown: Shown
    told: str = ""
    kind: int = 0


class Gateway(Whole):
    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.write({"rules": [], "final": "direct"})
        self.start()
        poll(self.ready, self.process.told(), 30)
        self.resolve()

    def write(self, route: dict[str, Any]) -> None:
        names = sorted({name for owners in OWNERS.values() for name in owners})
        hosts = {name: [site for site, owners in OWNERS.items() if name in owners] for name in names}
        self.path.write_text(json.dumps({
            "dns": {"servers": [{"tag": "hosts", "type": "hosts", "predefined": hosts}]},
            "outbounds": [
                {"type": "direct", "tag": "direct"}, {"type": "direct", "tag": "direct2"},
                {"type": "block", "tag": "block"},
                {"type": "selector", "tag": "select", "outbounds": ["direct", "vps"]},
                *({"type": "socks", "tag": tag, "server": "203.0.113.2", "server_port": port}
                  for tag, port in TELLERS.items()),
            ],
            "route": {**route, "default_domain_resolver": "hosts"},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {
                    "address": ["203.0.113.1/24", "2001:db8:3::1/64"], "gateway": ["203.0.113.2", "2001:db8:3::2"],
                }}],
                "lans": [{"interface": "lan0", "address": ["192.168.0.1/16", f"2001:db8:8::1/{SIX}"]}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": "off"},
            },
        }))  # fmt: skip

    def ready(self) -> bool:
        told = self.status()
        routes = "".join(self.gateway.run(["ip", family, "route"]).out for family in ("-4", "-6"))
        return told.get("state") == "running" and told["steering"] and routes.count("default via") == 2

    def resolve(self) -> None:
        """The client asks for every name, so that the gateway learns whose addresses they are."""
        asked = list(dict.fromkeys(name for owners in OWNERS.values() for name in owners))
        with self.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(("192.168.0.1", 53))
            for name in asked:
                for kind in (1, 28):
                    sock.send(question(name, kind))
                    assert sock.recv(2000)[3] & 15 == 0, name

    def apply(self, case: brute.Case) -> None:
        """The rules of ``case``; no flow of the last ones is left."""
        self.write({key: case.raw[key] for key in ("rules", "rule_set", "final")})
        before = len(self.process.err.read_text())
        os.kill(self.process.pid, signal.SIGHUP)
        said = poll(
            lambda: [line for line in self.process.err.read_text()[before:].splitlines() if "configuration " in line],
            "the gateway does not say that it has reloaded",
        )
        assert "configuration applied" in said[0], said
        self.gateway.call(lambda: conntrack.delete_marked(0, 0))

    def send(self, sent: Sent, sock: socket.socket, expected: bool) -> str:
        """Who answers: ``server``, a teller's tag, ``refused``, ``silent``. ``expected``: whether an answer is, which
        is waited for in patience."""
        flow = sent.flow
        sock.settimeout(10 if expected else 1.5)
        try:
            sock.connect((str(flow.destination.host), flow.destination.port))
            sock.send(SPOKEN[flow.network][sent.shown.protocol](sent.shown.name))
            answer = sock.recv(2000).decode(errors="replace")
            return answer.split()[0] if answer else "refused"
        except TimeoutError:
            return "silent"
        except OSError:
            return "refused"

    def entries(self) -> dict[tuple[int, Address, Address], int]:
        found = self.gateway.call(lambda: conntrack.dump(0, 0))
        return {(one.protocol, one.source, one.destination): one.mark & mark.CLASS for one in found}


def flows(rng: random.Random) -> Iterator[Sent]:
    """``FLOWS`` random ones. A UDP port is never used twice: who has one keeps what was decided for it."""
    for number in range(FLOWS):
        network = rng.choice(("tcp", "udp"))
        site = rng.choice(SITES)
        address = ip_address(site)
        key = brute.Key(network, rng.choice(PORTS), address, names=OWNERS.get(site, ()))
        local = rng.random() < 0.2
        if local:
            source = "203.0.113.1" if address.version == 4 else "2001:db8:3::1"
        else:
            source = rng.choice([one for one in brute.SOURCES if (":" in one) == (address.version == 6)])
        protocol = rng.choice(tuple(SPOKEN[network]))
        name = rng.choice(key.names or brute.LIKELY_NAMES) if protocol else ""
        port = rng.choice((2000, 20000, 30000, 45000, 50000)) + next(COUNT) % 4000
        if network == "tcp" and number < 2:
            port = (1024, 50000)[number]
        who = brute.process("/opt/unknown", 38, ()) if local else None
        key = brute.Key(network, key.port, address, None if local else ip_address(source), who, key.names)
        ends = Address.of(source, port), Address.of(site, key.port)
        yield Sent(key, Flow(network, "gateway", "tproxy", *ends, "", who), Shown(protocol, name))


COUNT = iter(range(1, 1 << 30))


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    if os.geteuid():
        pytest.skip("needs root")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(TOPOLOGY))
        server = lab.host("server")
        stack.enter_context(closing(Server(server, SITES, PORTS)))
        for tag, port in TELLERS.items():
            stack.enter_context(closing(Teller(tag, "203.0.113.2", port, server.socket)))
        yield stack.enter_context(closing(Gateway(lab)))


def expected(judge: Judge, sent: Sent) -> tuple[Verdict, str]:
    """What the kernel should say, and where the flow should end: a ``direct`` of the kernel is a person's own word
    where rules say ``bypass``, all else is the engine's."""
    verdict = judge.ruling(sent.key).verdict
    if verdict is Verdict.DIRECT:
        return verdict, "direct"
    learned = tuple(reversed(sent.key.names))  # newest first
    return verdict, decide(judge.case.engine, sent.flow, sent.shown, learned).outcome


def wrong(sent: Sent, verdict: Verdict, outcome: str) -> bool:
    """Whether what came of a flow is not what was expected."""
    local = sent.flow.process is not None
    if verdict in (Verdict.REJECT, Verdict.DROP):
        # A sender of the gateway's own learns of a drop from send(2).
        quiet = ("silent", "refused") if local else ("silent",)
        return sent.told not in (quiet if verdict is Verdict.DROP else ("refused",)) or sent.kind in CLASSES.values()
    # A UDP flow that userspace finds to be direct goes home: what it sent until then leaves as a flow without a class.
    home = sent.flow.network == "udp" and outcome == "direct" and not local
    if sent.kind != CLASSES[verdict] and not (home and sent.kind in (0, mark.DIRECT)):
        return True
    if outcome == "direct":
        return sent.told != "server"
    if outcome.startswith("outbound "):
        return sent.told != outcome.removeprefix("outbound ")
    return sent.told == "server" or sent.told in TELLERS


def bind(sock: socket.socket, source: Address) -> None:
    """The gateway's own sockets have ports too, for moments."""
    late = time.monotonic() + 10
    while True:
        try:
            sock.bind((str(source.host), source.port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > late:
                raise
        time.sleep(0.1)


def through(gateway: Gateway, case: brute.Case, sent: list[Sent], wanted: list[tuple[Verdict, str]]) -> list[Sent]:
    """All at once; with what came of each."""
    gateway.apply(case)
    with ExitStack() as stack:
        socks = []
        for one in sent:
            host = gateway.gateway if one.flow.process is not None else gateway.client
            family = socket.AF_INET6 if one.key.address.version == 6 else socket.AF_INET
            kind = socket.SOCK_STREAM if one.flow.network == "tcp" else socket.SOCK_DGRAM
            sock = stack.enter_context(host.socket(family, kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Its end leaves nothing behind: the next list's flows use the same ports.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            bind(sock, one.flow.source)
            socks.append(sock)
        answers = [outcome.startswith(("direct", "outbound")) for _, outcome in wanted]
        with ThreadPoolExecutor(len(sent)) as pool:
            told = list(pool.map(gateway.send, sent, socks, answers))
        entries = gateway.entries()
    tuples = [(conntrack.PROTOCOLS[one.flow.network], one.flow.source, one.flow.destination) for one in sent]
    return [
        one._replace(told=word, kind=entries.get(entry, 0)) for one, word, entry in zip(sent, told, tuples, strict=True)
    ]


def compare(gateway: Gateway, numbers: Iterable[int], figure: Callable[[str], None]) -> Counter[str]:
    mix: Counter[str] = Counter()
    errors = []
    for seed in [int(os.environ["GATEWAY_SEED"])] if "GATEWAY_SEED" in os.environ else numbers:
        rng = random.Random(seed)
        case = brute.configuration(rng, bypass=0.2, world=WORLD, overrides=False)
        judge = Judge(case)
        sent = list(flows(rng))
        wanted = [expected(judge, one) for one in sent]
        for one, (verdict, outcome) in zip(through(gateway, case, sent, wanted), wanted, strict=True):
            mix["flows"] += 1
            mix[verdict.name] += 1
            mix[f"{one.flow.network}{one.key.address.version}"] += 1
            mix["local"] += one.flow.process is not None
            if wrong(one, verdict, outcome):
                errors.append(f"GATEWAY_SEED={seed}: {one}: expected {verdict.name}, {outcome}\n{case.raw}")
    figure(f"{mix['flows']} flows: {dict(mix)}")
    assert not errors, f"{len(errors)} wrong:\n" + "\n".join(errors[:5])
    return mix


def test_t03_packets_go_as_the_engine_says(gateway: Gateway, figure: Callable[[str], None]) -> None:
    mix = compare(gateway, range(SLOW), figure)
    if "GATEWAY_SEED" not in os.environ:
        assert min(mix[name] for name in ("DIRECT", "USER", "SNIFF", "REJECT", "tcp4", "tcp6", "udp4", "udp6")) > 3


@pytest.mark.soak
def test_t03_packets_go_as_the_engine_says_at_length(gateway: Gateway, figure: Callable[[str], None]) -> None:
    compare(gateway, range(SLOW, SOAK), figure)
