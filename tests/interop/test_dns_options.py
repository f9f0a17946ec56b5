"""DNS options whose effect shows in what the servers are asked: the real sing-box and us, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading

import pytest

from tests import peers
from tests.interop.harness import DEADLINE, LOOPBACK, free_port, program
from tests.interop.test_dns import run
from tests.interop.test_run import DIRECT

NOERROR, NXDOMAIN, REFUSED = 0, 3, 5
TTL, MINIMUM = 600, 300


class Upstream:
    """Says ``address`` to every name but ``gone.test``; counts what it was asked."""

    def __init__(self, address):
        self._record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, TTL, 4) + socket.inet_aton(address)
        self.asked = 0
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((LOOPBACK, 0))
        self.port = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def _serve(self):
        soa = b"\xc0\x0c" + struct.pack("!HHIH", 6, 1, TTL, 22) + bytes(2) + struct.pack("!5I", 1, 2, 3, 4, MINIMUM)
        while True:
            query, name = self._sock.recvfrom(4096)
            if query == b"end":
                return
            self.asked += 1
            question = query[12 : query.index(b"\0", 12) + 5]
            if b"\4gone" in question:
                head, rest = struct.pack("!HHHHH", 0x8183, 1, 0, 1, 0), soa
            else:
                head, rest = struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0), self._record
            self._sock.sendto(query[:2] + head + question + rest, name)

    def __exit__(self, *error):
        self._sock.sendto(b"end", (LOOPBACK, self.port))
        self._thread.join(DEADLINE)
        self._sock.close()


def ask(port, name, at=LOOPBACK, patience=DEADLINE):
    """Code, TTL of the first record and last four bytes (an address) of the answer; None where there is none."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    query = struct.pack("!6H", 77, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((at, 0))
        sock.connect((LOOPBACK, port))
        sock.settimeout(min(patience, 2))
        for _ in range(max(int(patience / 2), 1)):  # a datagram may be lost, and is asked again
            sock.send(query)
            with contextlib.suppress(TimeoutError):
                answer = sock.recv(4096)
                break
        else:
            return None
    assert answer[:2] == query[:2]
    # Behind the question one record: its name as a pointer, or spelled out.
    record = answer[len(query) :]
    start = 2 if record[:1] >= b"\xc0" else record.find(b"\0") + 1
    ttl = struct.unpack_from("!I", record, start + 4)[0] if record else None
    return answer[3] & 15, ttl, socket.inet_ntoa(answer[-4:])


def by_sing_box(servers, body, **section):
    port = free_port()
    config = {
        "inbounds": [{"type": "direct", "tag": "in", "listen": LOOPBACK, "listen_port": port}],
        "outbounds": [DIRECT],
        "dns": {"servers": servers, **section},
        "route": {"rules": [{"inbound": "in", "action": "hijack-dns"}]},
    }
    with program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port):
        body(port)


def by_us(servers, body, **section):
    run(servers, lambda ours: asyncio.to_thread(body, ours.port), **section)


def server(tag, upstream):
    return {"type": "udp", "tag": tag, "server": LOOPBACK, "server_port": upstream.port}


@contextlib.contextmanager
def upstreams(count=2):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Upstream(f"198.51.100.{number + 1}")) for number in range(count)]


both = pytest.mark.parametrize("who", [pytest.param(by_sing_box, id="sing-box"), pytest.param(by_us, id="ours")])
pytestmark = pytest.mark.peer("sing-box")


@both
def test_reject_answers_however_often_it_is_asked(who):
    rules = [
        {"domain": "no.test", "action": "reject"},
        {"domain": "silent.test", "action": "reject", "method": "drop"},
    ]

    def body(port):
        assert {ask(port, "no.test")[0] for _ in range(70)} == {REFUSED}
        assert ask(port, "silent.test", patience=1) is None

    with upstreams() as (up, _):
        who([server("up", up)], body, rules=rules)
        assert up.asked == 0


@both
def test_rewrite_ttl(who):
    rules = [
        {"domain": ["seven.test", "seven.gone.test"], "server": "up", "rewrite_ttl": 700},
        {"domain": "zero.test", "server": "up", "rewrite_ttl": 0},
        {"domain": "options.test", "action": "route-options", "rewrite_ttl": 900},
    ]

    def body(port):
        def near(name, code, ttl):
            found = ask(port, name)
            assert found[0] == code, found
            assert ttl - 60 <= found[1] <= ttl, found

        for _ in range(2):
            near("seven.test", NOERROR, 700)
            near("seven.gone.test", NXDOMAIN, 700)
            near("options.test", NOERROR, 900)
            near("plain.test", NOERROR, TTL)
            near("x.gone.test", NXDOMAIN, MINIMUM)
        assert up.asked == 5
        for _ in range(3):  # no lifetime: never kept
            assert ask(port, "zero.test")[:2] == (NOERROR, 0)
        assert up.asked == 8

    with upstreams() as (up, _):
        who([server("up", up)], body, rules=rules)


@both
def test_disable_cache(who):
    def of_a_rule(port):
        for _ in range(3):
            ask(port, "fresh.test")
            ask(port, "also.test")
            ask(port, "kept.test")
        assert up.asked == 7

    def of_all(port):
        for _ in range(3):
            ask(port, "kept.test")
        assert up.asked == 10

    rules = [
        {"domain": "fresh.test", "server": "up", "disable_cache": True},
        {"domain": "also.test", "action": "route-options", "disable_cache": True},
    ]
    with upstreams() as (up, _):
        who([server("up", up)], of_a_rule, rules=rules)
        who([server("up", up)], of_all, disable_cache=True)


@both
def test_independent_cache(who):
    """One name, two clients: what one server said is not given out as the other's, and is shared by the rules that
    ask the same server."""
    rules = [
        {"source_ip_cidr": "127.0.0.2", "server": "two"},
        {"source_ip_cidr": "127.0.0.3", "server": "two"},
    ]

    def body(port):
        for _ in range(2):
            for at, address in (("127.0.0.1", 1), ("127.0.0.2", 2), ("127.0.0.3", 2)):
                assert ask(port, "a.test", at)[2] == f"198.51.100.{address}"
        assert (one.asked, two.asked) == (1, 1)

    with upstreams() as (one, two):
        who([server("one", one), server("two", two)], body, rules=rules, independent_cache=True)


@pytest.mark.slow
@both
@pytest.mark.parametrize(("capacity", "kept"), [(0, False), (1 << 16, True)])
def test_cache_capacity(who, capacity, kept):
    """At least 1024 answers. sing-box's cache is cut into shards, so that only the order of magnitude compares."""
    names, again = 2048, 128

    def body(port):
        for number in range(names):
            ask(port, f"n{number}.test")
        assert up.asked == names
        for number in range(again):
            ask(port, f"n{number}.test")
        missed = up.asked - names
        assert missed <= again // 10 if kept else missed >= again * 9 // 10, missed

    with upstreams() as (up, _):
        who([server("up", up)], body, cache_capacity=capacity)
