"""How flows leave, seen from the servers: the real sing-box and us with one configuration, side by side.

All in one namespace whose loopback has public addresses too and whose TCP may be opened fast.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time

import pytest

from gateway.lab import netns
from tests.interop.harness import DEADLINE, LOOPBACK, LOOPBACKS, encode, exactly, family, free_port
from tests.interop.test_rule_items import HIT, MISS, PROGRAMS, Flow, both, dnsmasq, plainly, run_sing_box, says, told
from tests.interop.test_run import DIRECT
from tests.interop.test_shadowsocks import PASSWORDS

pytestmark = [pytest.mark.root, pytest.mark.peer("sing-box"), pytest.mark.xdist_group("dial-fields")]
IPPROTO_MPTCP, TCP_IS_MPTCP, TCP_FASTOPEN, MSG_FASTOPEN = 262, 43, 23, 0x20000000
OPTIONS, SYN_DATA = 5, 32
"""In struct tcp_info: where its options are, and the one that says that a SYN carried data (linux/tcp.h)."""
SIX = "::1"
ADDRESSES = ["198.51.100.1/32", "10.0.0.1/32", "fd00::1/128", "fd00::9/128", "2001:db8::1/128"]
HOP = {LOOPBACK: "127.0.0.9", SIX: "fd00::9"}
"""What the connections of the first hop of a chain come from."""
METHOD = "aes-128-gcm"


class Space:
    """A namespace; ``call`` runs in it, as do the threads and programs that are started there."""

    def __init__(self):
        self.name = f"gwdial-{os.getpid()}"
        netns.create(self.name)
        self._net = os.open(netns.NAMED / self.name, os.O_RDONLY | os.O_CLOEXEC)
        for words in (["link", "set", "lo", "up"], *(["address", "add", at, "dev", "lo"] for at in ADDRESSES)):
            subprocess.run(["ip", "-n", self.name, *words], check=True)

    def call(self, work):
        def body():
            netns.setns(self._net, netns.CLONE_NEWNET)
            return work()

        return netns.apart(body)

    def close(self):
        os.close(self._net)
        netns.delete(self.name)


def open_fast():
    # 1: clients, 2: servers
    with open("/proc/sys/net/ipv4/tcp_fastopen", "w") as file:
        file.write("3")


@contextlib.contextmanager
def witness(at, protocol, seen):
    """A TCP server that says ``seen(connection)`` to the first bytes; its port."""
    port = free_port()
    with socket.socket(family(at), socket.SOCK_STREAM, protocol) as server:
        if protocol == socket.IPPROTO_TCP:
            server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        server.bind((at, port))
        server.listen(16)

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    sock = server.accept()[0]
                    with sock:
                        sock.settimeout(DEADLINE)
                        if sock.recv(4096):
                            sock.sendall(HIT if seen(sock) else MISS)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield port
        server.shutdown(socket.SHUT_RDWR)


def opened_fast(sock):
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 64)[OPTIONS] & SYN_DATA)


def is_mptcp(sock):
    return bool(sock.getsockopt(socket.IPPROTO_TCP, TCP_IS_MPTCP))


@contextlib.contextmanager
def sources():
    """A UDP server that answers with the port it hears from; to ``other`` from another port of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, socket.socket(socket.AF_INET, sock.type) as second:
        sock.bind((LOOPBACK, 0))
        second.bind((LOOPBACK, 0))

        def serve():
            while True:
                data, name = sock.recvfrom(4096)
                if data == b"end":
                    return
                (second if data == b"other" else sock).sendto(b"%d" % name[1], name)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield sock.getsockname()[1]
        second.sendto(b"end", sock.getsockname())
        thread.join(DEADLINE)


def hop(at, first, second):
    """The inbounds of a chain at ``at``; what leaves the first one comes from ``HOP``."""
    shadowsocks = {"type": "shadowsocks", "method": METHOD, "password": PASSWORDS[METHOD]}
    return [
        {"type": "socks", "tag": f"first {at}", "listen": at, "listen_port": first},
        {**shadowsocks, "tag": f"second {at}", "listen": at, "listen_port": second},
    ]


def peer_of(hops, hit, miss):
    to = {"outbound": "direct", "override_address": LOOPBACK}
    return {
        "inbounds": [inbound for at, ports in hops.items() for inbound in hop(at, *ports)],
        "outbounds": [
            DIRECT,
            {"type": "direct", "tag": "on", "inet4_bind_address": HOP[LOOPBACK], "inet6_bind_address": HOP[SIX]},
        ],
        "route": {
            "rules": [
                {"inbound": [f"first {at}" for at in hops], "outbound": "on"},
                {"source_ip_cidr": list(HOP.values()), **to, "override_port": hit},
                {"network": ["tcp", "udp"], **to, "override_port": miss},
            ]
        },
    }


class Stage:
    """The servers, and both programs before them. ``ports[who][tag]``: an inbound and what it leaves by."""

    def __init__(self, stack):
        open_fast()
        enter = stack.enter_context
        self.hit, self.miss = enter(says(HIT)), enter(says(MISS))
        self.named = free_port()
        for at, word in ((LOOPBACK, HIT), ("127.0.0.2", MISS), (SIX, b"six")):
            enter(says(word, at, self.named))
        self.fast = {at: enter(witness(at, socket.IPPROTO_TCP, opened_fast)) for at in (LOOPBACK, SIX)}
        self.many = {at: enter(witness(at, IPPROTO_MPTCP, is_mptcp)) for at in (LOOPBACK, SIX)}
        self.sources = enter(sources())
        self.hops = {at: (free_port(), free_port()) for at in (LOOPBACK, SIX)}
        enter(run_sing_box(peer_of(self.hops, self.hit, self.miss), self.hops[LOOPBACK][0]))
        self.dns = enter(dnsmasq(f"server.test,{LOOPBACK},{SIX}"))
        self.ports = {}
        for who, run in PROGRAMS.items():
            config, self.ports[who] = self.configuration()
            enter(run(config, self.ports[who]["plain"]))

    def outbounds(self):
        proxy = {"type": "shadowsocks", "method": METHOD, "password": PASSWORDS[METHOD]}
        for at, (first, second) in self.hops.items():
            yield {"type": "socks", "tag": f"via {at}", "server": at, "server_port": first}
            yield {**proxy, "tag": f"chain {at}", "server": at, "server_port": second, "detour": f"via {at}"}
            yield {**proxy, "tag": f"no chain {at}", "server": at, "server_port": second}
        yield {"type": "direct", "tag": "plain"}
        yield {"type": "direct", "tag": "fast", "tcp_fast_open": True}
        yield {"type": "direct", "tag": "many", "tcp_multi_path": True}
        yield {"type": "direct", "tag": "named", "domain_resolver": {"server": "up", "strategy": "ipv4_only"}}
        yield {"type": "direct", "tag": "named 6", "domain_resolver": {"server": "up", "strategy": "ipv6_only"}}
        yield {**proxy, "tag": "server by name", "server": "server.test", "server_port": self.hops[LOOPBACK][1],
               "domain_resolver": {"server": "up", "strategy": "ipv4_only"}}  # fmt: skip

    def configuration(self):
        ports, inbounds, rules = {}, [], []

        def add(tag, *then, **fields):
            """A mixed inbound with rules of its own."""
            ports[tag] = free_port()
            fields = {"type": "mixed", "listen": LOOPBACK, **fields}
            inbounds.append({"tag": tag, "listen_port": ports[tag], **fields})
            rules.extend({"inbound": tag, **rule} for rule in then)

        outbounds = list(self.outbounds())
        for outbound in outbounds:
            add(outbound["tag"], {"outbound": outbound["tag"]})
        for at in (LOOPBACK, SIX):
            for tag, port in (("fast", self.fast[at]), ("many", self.many[at])):
                target = {"type": "direct", "override_address": at, "override_port": port}
                add(f"straight {tag} {at}", {"outbound": tag}, **target)
            add(f"opened fast {at}", {"outbound": "plain"}, listen=at, tcp_fast_open=True)
            add(f"opened many {at}", {"outbound": "plain"}, listen=at, tcp_multi_path=True)
        to = {"outbound": "plain", "override_address": LOOPBACK}
        add("private", {"source_ip_is_private": True, **to, "override_port": self.hit},
            {"network": ["tcp", "udp"], **to, "override_port": self.miss}, listen="::")  # fmt: skip
        options = {"action": "route-options"}
        add("override", {**options, "network": "tcp", "override_address": LOOPBACK, "override_port": self.hit}, to)
        rules[-1] = {"inbound": "override", "outbound": "plain"}
        resolve = {"action": "resolve", "server": "up", "strategy": "ipv4_only"}
        add("resolved", resolve, {"outbound": "plain"})
        for field in ({"udp_disable_domain_unmapping": True}, {"udp_connect": True}, {"udp_timeout": "1s"}):
            add(*field, {**options, **field}, resolve, {"outbound": "plain"})
        hosts = {"tag": "hosts", "type": "hosts", "predefined": {"server.test": "127.0.0.2"}}
        return {
            "log": {"level": "debug"},
            "dns": {
                "servers": [hosts, {"tag": "up", "type": "udp", "server": LOOPBACK, "server_port": self.dns}],
                "independent_cache": True,
            },
            "inbounds": inbounds,
            "outbounds": outbounds,
            "route": {"rules": rules, "default_domain_resolver": "hosts", "final": "plain"},
        }, ports


@pytest.fixture(scope="module")
def space():
    space = Space()
    try:
        yield space
    finally:
        space.close()


@pytest.fixture(scope="module")
def stage(space):
    with contextlib.ExitStack() as stack:
        stage = space.call(lambda: Stage(stack))
        yield stage
        space.call(stack.close)


every_program = pytest.mark.parametrize("who", PROGRAMS)
both_families = pytest.mark.parametrize("at", LOOPBACKS)


@every_program
@pytest.mark.parametrize("network", ["tcp", "udp"])
@both_families
def test_detour(space, stage, who, network, at):
    """Through a SOCKS server to a Shadowsocks server, which sees where its clients come from."""
    flow = Flow(network=network)
    for tag, wanted in ((f"chain {at}", HIT), (f"no chain {at}", MISS)):
        answer = space.call(lambda tag=tag, wanted=wanted: told(stage.ports[who][tag], flow, wanted))
        assert answer.endswith(wanted), (tag, answer)


@every_program
@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_domain_resolver(space, stage, who, network):
    """The name of a destination and that of a proxy's server; the default server says another address."""
    flow = Flow("server.test", stage.named, network)
    for tag, wanted in (("named", HIT), ("named 6", b"six"), ("plain", MISS)):
        answer = space.call(lambda tag=tag, wanted=wanted: told(stage.ports[who][tag], flow, wanted))
        assert answer.endswith(wanted), (tag, answer)
    answer = space.call(lambda: told(stage.ports[who]["server by name"], flow, MISS))
    assert answer.endswith(MISS), answer


@every_program
@both_families
@pytest.mark.parametrize("field", ["fast", "many"])
def test_fast_open_and_multipath_out(space, stage, who, at, field):
    """The third connection has a cookie of the second at the latest. sing-box 1.12 has no multipath over IPv6."""
    if (field, at, who) == ("many", SIX, "sing-box"):
        return
    flow = Flow(at, getattr(stage, field)[at])
    ports = stage.ports[who]
    for tag, wanted in ((field, HIT), ("plain", MISS)):
        answers = [space.call(lambda tag=tag: told(ports[tag], flow, HIT)) for _ in range(3)]
        assert answers[-1] == wanted, (tag, answers)
    straight = [space.call(lambda: plainly(ports[f"straight {field} {at}"], Flow(), HIT)) for _ in range(3)]
    assert straight[-1] == HIT


@every_program
@both_families
def test_fast_open_in(space, stage, who, at):
    def opened(tag):
        with socket.socket(family(at)) as sock:
            sock.sendto(b"\x05\x01\x00", MSG_FASTOPEN, (at, stage.ports[who][tag]))
            sock.settimeout(DEADLINE)
            assert exactly(sock, 2) == b"\x05\x00"
            return opened_fast(sock)

    assert [space.call(lambda: opened(f"opened fast {at}")) for _ in range(3)][-1]
    assert not any(space.call(lambda: opened(f"opened many {at}")) for _ in range(3))


@every_program
@both_families
def test_multipath_in(space, stage, who, at):
    def opened(tag):
        with socket.socket(family(at), socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
            sock.settimeout(DEADLINE)
            sock.connect((at, stage.ports[who][tag]))
            sock.sendall(b"\x05\x01\x00")
            assert exactly(sock, 2) == b"\x05\x00"
            sock.sendall(b"\x05\x01\x00" + encode(LOOPBACK, stage.hit))
            answer = exactly(sock, 4)
            assert answer[1] == 0
            exactly(sock, {1: 6, 4: 18}[answer[3]])
            sock.sendall(b"?")
            assert exactly(sock, len(HIT)) == HIT
            return is_mptcp(sock)

    assert space.call(lambda: opened(f"opened many {at}"))
    # Go's listeners take multipath connections unasked.
    assert who == "sing-box" or not space.call(lambda: opened(f"opened fast {at}"))


@every_program
def test_source_ip_is_private(space, stage, who):
    for at, wanted in ((LOOPBACK, HIT), ("10.0.0.1", HIT), (SIX, HIT), ("fd00::1", HIT), ("198.51.100.1", MISS),
                       ("2001:db8::1", MISS)):  # fmt: skip
        for flow in both(at=at):
            answer = space.call(lambda flow=flow, wanted=wanted: told(stage.ports[who]["private"], flow, wanted))
            assert answer.endswith(wanted), (flow, answer)


@every_program
def test_route_options_override(space, stage, who):
    answer = space.call(lambda: told(stage.ports[who]["override"], Flow("192.0.2.1", 9), HIT))
    assert answer == HIT
    there = Flow(LOOPBACK, stage.miss, "udp")
    assert space.call(lambda: told(stage.ports[who]["override"], there, MISS)).endswith(MISS)


@pytest.mark.slow
@every_program
def test_udp_route_options(space, stage, who):
    """Each beside an inbound without it: what a SOCKS client is told."""
    ports, name = stage.ports[who], "server.test"

    def asked(tag, *words, pause=0.0):
        with socket.create_connection((LOOPBACK, ports[tag]), DEADLINE) as control:
            control.sendall(b"\x05\x01\x00")
            assert exactly(control, 2) == b"\x05\x00"
            control.sendall(b"\x05\x03\x00\x01\0\0\0\0\0\0")
            port = int.from_bytes(exactly(control, 10)[8:])
            answers = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(1)
                for number, word in enumerate(words):
                    time.sleep(pause if number else 0)
                    sock.sendto(b"\0\0\0" + encode(name, stage.sources) + word, (LOOPBACK, port))
                    try:
                        answers.append(sock.recv(4096))
                    except TimeoutError:
                        answers.append(b"")
            return answers

    heads = [b"\0\0\0" + encode(host, stage.sources) for host in (name, LOOPBACK)]
    for tag, head in (("resolved", heads[0]), ("udp_disable_domain_unmapping", heads[1])):
        assert space.call(lambda tag=tag: asked(tag, b"?"))[0].startswith(head), tag
    for tag, heard in (("resolved", True), ("udp_connect", False)):
        assert [bool(answer) for answer in space.call(lambda tag=tag: asked(tag, b"?", b"other"))] == [True, heard], tag
    for tag, ways in (("resolved", 1), ("udp_timeout", 2)):
        assert len(set(space.call(lambda tag=tag: asked(tag, b"?", b"?", pause=2.5)))) == ways, tag
