"""Random rule lists for the real sing-box and for us, and random SOCKS clients: both choose the same outbound.

Each outbound is a SOCKS server here that tells its clients its own tag and where they wanted to go.
``GATEWAY_SEED=N`` tries the rule list of that seed alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from gateway.route.item import table
from tests.greetings import hello, initial
from tests.interop.harness import LOOPBACK, encode, exactly, family, free_port
from tests.interop.teller import Teller, unwrapped
from tests.interop.test_rule_items import PROGRAMS, framed, http, question
from tests.unit.route import brute

pytestmark = [pytest.mark.peer("sing-box"), pytest.mark.slow]
TAGS = ("a", "b", "c")
LISTS, FLOWS = 40, 8
CI = 13
"""Rule lists of the slow stage: 104 flows; all of them, 320 flows, with the soak."""
INBOUNDS = ("gateway", "socks-in")
USERS = ("alice", "bob")
SOURCES = ("127.0.0.1", "127.0.0.9", "127.0.0.16", "127.0.1.1")
SOURCE_PORTS = [free_port() for _ in range(16)]
"""For each program a flow takes one of its own, so that none is asked for again within the time that TCP keeps it."""
REFUSED = "refused"
HOSTS = {name: ["198.51.100.7"] if at % 3 else ["192.0.2.130", "2001:db8::1"] for at, name in enumerate(brute.NAMES)}
NAMES = brute.LIKELY_NAMES
OURS = table.OURS | {"client", "process_name", "process_path", "process_path_regex", "user", "user_id"}
"""What sing-box does not have, what a client here cannot choose, and programs, of which test_rule_items.py has much."""
WORLD = brute.World(
    brute.POOL
    | {
        "source_ip_cidr": ("127.0.0.8/29", "127.0.0.0/24", "::/0"),
        "source_port": tuple(SOURCE_PORTS[:8]),
        "source_port_range": (f"{SOURCE_PORTS[4]}:", f":{SOURCE_PORTS[11]}"),
        "auth_user": USERS,
    },
    OURS,
)


SPOKEN = {
    "tcp": lambda name: {"tls": hello(name), "http": http(name), "dns": framed(question(name)), "": b"\0?"},
    "udp": lambda name: {"quic": initial(name)[0], "dns": question(name), "": b"\0?"},
}
"""What a client says first, by protocol."""


class Flow(NamedTuple):
    inbound: str
    user: str
    source: str
    source_port: int
    network: str
    host: str
    port: int
    says: str
    """Protocol and name."""
    first: bytes


def rules(rng):
    """The ``route`` of a configuration."""
    made = []
    for _ in range(rng.randint(2, 6)):
        rule = WORLD.condition(rng)
        kind = rng.random()
        if kind < 0.25:
            rule = {"action": "sniff"} if rng.random() < 0.7 else {**rule, "action": "sniff"}
            if rng.random() < 0.2:
                rule["sniffer"] = brute.some(rng, ("tls", "http", "quic", "dns"))
        elif kind < 0.3:
            rule |= {"action": "reject", "method": rng.choice(("default", "drop"))}
        elif kind < 0.35:
            rule |= {"action": "hijack-dns"}
        elif kind < 0.4:
            rule |= {"action": "route-options", "override_address": rng.choice(("203.0.113.77", "far.q", "192.0.2.1"))}
        elif kind < 0.45:
            rule |= {"action": "resolve"}
        else:
            rule |= {"outbound": rng.choice((*TAGS, "chosen", "block"))}
            if rng.random() < 0.05:
                rule["override_port"] = 4444
        made.append(rule)
    return {
        "rules": made,
        "rule_set": WORLD.rule_sets(rng),
        "final": rng.choice(TAGS),
        "default_domain_resolver": "hosts",
    }


def flows(rng):
    ports = itertools.cycle(rng.sample(SOURCE_PORTS, FLOWS))
    for _ in range(FLOWS):
        network = rng.choice(("tcp", "udp"))
        asked = rng.choice(NAMES) if rng.random() < 0.4 else ""
        name = asked or rng.choice(NAMES)  # what is asked and what is said differ in test_rule_items.py
        host = asked or rng.choice(brute.V4 + brute.V6)
        spoken = SPOKEN[network](name)
        says = rng.choice((*spoken, "quic" if network == "udp" else "tls"))
        yield Flow(
            rng.choice(INBOUNDS), rng.choice(USERS), rng.choice(SOURCES), next(ports), network, host,
            rng.choice(brute.LIKELY_PORTS if rng.random() < 0.5 else brute.PORTS), f"{says} {name}", spoken[says],
        )  # fmt: skip


def configuration(route, peers):
    ports = {tag: free_port() for tag in INBOUNDS}
    users = [{"username": name, "password": "secret"} for name in USERS]
    return ports, {
        "log": {"level": "debug"},
        "dns": {"servers": [{"tag": "hosts", "type": "hosts", "predefined": HOSTS}]},
        "inbounds": [
            {"type": "mixed", "tag": tag, "listen": LOOPBACK, "listen_port": port, "users": users}
            for tag, port in ports.items()
        ],
        "outbounds": [
            *({"type": "socks", "tag": peer.tag, "server": LOOPBACK, "server_port": peer.port} for peer in peers),
            {"type": "selector", "tag": "chosen", "outbounds": ["a", "b"], "default": "b"},
            {"type": "block", "tag": "block"},
        ],
        "route": route,
    }


def told(port, flow, tries=3):
    """Which outbound a client of the mixed inbound at ``port`` meets and for which target; ``hijacked`` where it gets a
    DNS answer, ``REFUSED`` where nothing within ``tries`` seconds."""
    with socket.socket() as sock, contextlib.suppress(AssertionError, ConnectionError):
        sock.settimeout(tries)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Of datagrams sing-box takes the control connection's port for the source's, we their own.
        sock.bind((flow.source, flow.source_port))
        sock.connect((LOOPBACK, port))
        sock.sendall(b"\x05\x01\x02")
        assert exactly(sock, 2) == b"\x05\x02"
        sock.sendall(b"\x01" + bytes([len(flow.user)]) + flow.user.encode() + b"\x06secret")
        assert exactly(sock, 2) == b"\x01\x00"
        answer = of_stream(sock, flow) if flow.network == "tcp" else of_datagrams(sock, flow, tries)
        if answer:
            if answer.startswith(tuple(f"{tag} ".encode() for tag in TAGS)):
                return answer.decode()
            # What is no question gets an error of ours and nothing of sing-box's.
            return "hijacked" if flow.says.startswith("dns") else REFUSED
    return REFUSED


def of_stream(sock, flow):
    with contextlib.suppress(TimeoutError):
        sock.sendall(b"\x05\x01\x00" + encode(flow.host, flow.port))
        answer = exactly(sock, 4)
        assert answer[1] == 0
        exactly(sock, {1: 6, 4: 18}[answer[3]])
        sock.sendall(flow.first)
        return sock.recv(65536)
    return b""


def of_datagrams(control, flow, tries):
    control.sendall(b"\x05\x03\x00" + encode("0.0.0.0", 0))
    answer = exactly(control, 4)
    assert answer[1] == 0
    port = int.from_bytes(exactly(control, {1: 6, 4: 18}[answer[3]])[-2:])
    with socket.socket(family(LOOPBACK), socket.SOCK_DGRAM) as sock:
        sock.bind((flow.source, flow.source_port))
        sock.settimeout(1)
        for _ in range(tries):  # a datagram may be lost
            sock.sendto(b"\0\0\0" + encode(flow.host, flow.port) + flow.first, (LOOPBACK, port))
            with contextlib.suppress(TimeoutError):
                data = sock.recv(65536)
                return unwrapped(data)[1]
    return b""


@pytest.fixture(scope="module")
def socks():
    peers = [Teller(tag) for tag in TAGS]
    yield peers
    for peer in peers:
        peer.close()


def compare(numbers, peers, figure):
    mix, wrong = Counter(), []
    for seed in [int(os.environ["GATEWAY_SEED"])] if "GATEWAY_SEED" in os.environ else numbers:
        rng = random.Random(seed)
        route = rules(rng)
        asked = list(flows(rng))
        met, logs = {}, {}
        for who, run in PROGRAMS.items():
            ports, config = configuration(route, peers)
            with run(config, ports[INBOUNDS[-1]]) as process, ThreadPoolExecutor(FLOWS) as pool:
                # Where sing-box had an answer we are given the time for one.
                tries = [3 if one == REFUSED else 15 for one in met.get("sing-box", [REFUSED] * FLOWS)]
                inbounds = [ports[flow.inbound] for flow in asked]
                met[who] = list(pool.map(told, inbounds, asked, tries))
                logs[who] = process.log.read_text().splitlines()
        for flow, theirs, ours in zip(asked, met["sing-box"], met["ours"], strict=True):
            mix["flows"] += 1
            mix[theirs.split()[0]] += 1
            if theirs != ours:
                lines = [line for log in logs.values() for line in log if f":{flow.source_port}" in line]
                wrong.append("\n".join([
                    f"GATEWAY_SEED={seed}: sing-box {theirs!r}, ours {ours!r}: {flow._replace(first=b'...')}", *lines,
                    str(route)]))  # fmt: skip
    figure(f"{mix.pop('flows')} flows: {dict(mix)}")
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n".join(wrong[:5])
    return mix


def test_same_outbound_as_sing_box(socks, figure):
    mix = compare(range(CI), socks, figure)
    assert min(mix[tag] for tag in TAGS) >= 10 or "GATEWAY_SEED" in os.environ


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_same_outbound_as_sing_box_at_length(socks, figure):
    compare(range(CI, LISTS), socks, figure)
