"""What rule items, actions and rule sets mean: the real sing-box and we with one configuration, side by side.

Each case has an inbound and rules of its own, all in one process of each program. Its last rule sends what it matches
to a server that says ``hit``; what nothing matches goes to one that says ``miss``. So the first words that come back
tell what was decided, whatever address was asked for.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests import peers
from tests.greetings import hello, initial
from tests.instances import instance
from tests.interop.harness import DEADLINE, LOOPBACK, LOOPBACKS, encode, exactly, family, free_port, program
from tests.interop.test_run import DIRECT, ROOT

pytestmark = [pytest.mark.peer("sing-box"), pytest.mark.xdist_group("rule-items")]
HIT, MISS = b"hit", b"miss"
SHARED = ROOT.parent / "shared" / "data" / "rule-set"


class Flow(NamedTuple):
    """What a SOCKS client asks for, from where, and its first bytes. ``at``: where the inbound listens."""

    host: str = "192.0.2.1"
    port: int = 80
    network: str = "tcp"
    first: bytes = b"?"
    source: str = ""
    source_port: int = 0
    user: str = ""
    at: str = LOOPBACK


class Case(NamedTuple):
    """``rules`` without an action go to ``hit``. ``flows``: each with the end of what its client is told."""

    rules: list
    flows: list
    inbound: dict = {}  # noqa: RUF012


def case(rules, hits, misses, **inbound):
    rules = rules if isinstance(rules, list) else [rules]
    return Case(rules, [(flow, HIT) for flow in hits] + [(flow, MISS) for flow in misses], inbound)


def both(*args, **kwargs):
    """The same flow over TCP and UDP."""
    return [Flow(*args, **kwargs, network=network) for network in ("tcp", "udp")]


def question(name, kind=1):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 77, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def framed(query):
    return len(query).to_bytes(2) + query


def http(name):
    return f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()


NAMES = {
    "domain": case({"domain": ["a.test", "B.test"]}, [*both("a.test"), Flow("A.TEST")],
                   [*both("x.a.test"), Flow("aa.test"), Flow("192.0.2.1"), Flow("b.test"), Flow("B.test")]),
    "domain_suffix": case({"domain_suffix": ["a.test", ".b.test"]},
                          [Flow("a.test"), *both("x.a.test"), Flow("y.b.test")],
                          [*both("xa.test"), Flow("b.test"), Flow("a.test.org")]),
    "domain_keyword": case({"domain_keyword": ["key", "word"]},
                           [*both("a.monkeys.test"), Flow("sword.test"), Flow("MONKEY.test")],
                           [*both("ke.y.test"), Flow("192.0.2.1")]),
    "domain_regex": case({"domain_regex": [r"^r\d+\.", "exact\\.test$"]},
                         [*both("r22.test"), Flow("inexact.test"), Flow("R1.TEST")],
                         [*both("ar22.test"), Flow("r.test"), Flow("exact.test.org"), Flow("192.0.2.1")]),
    "names or addresses": case({"domain": "a.test", "ip_cidr": "198.51.100.0/24"},
                               [Flow("a.test"), Flow("198.51.100.1")], [Flow("b.test"), Flow("192.0.2.1")]),
    "names and port": case({"domain_suffix": "a.test", "port": 443},
                           [Flow("a.test", 443)], [Flow("a.test", 80), Flow("b.test", 443)]),
}  # fmt: skip
PRIVATE = ["10.1.2.3", "172.31.0.1", "192.168.0.1", "127.8.8.8", "169.254.1.1", "224.0.0.9", "0.0.0.0",
           "fd00::1", "fe80::1", "::1", "ff02::1", "::", "::ffff:10.0.0.1"]  # fmt: skip
PUBLIC = ["8.8.8.8", "172.32.0.1", "100.64.0.1", "192.0.2.1", "255.255.255.255", "2001:4860::1", "64:ff9b::a00:1",
          "fec0::1", "::ffff:8.8.8.8"]  # fmt: skip
ADDRESSES = {
    "ip_cidr": case({"ip_cidr": ["198.51.100.0/24", "2001:db8:1::/48", "192.0.2.7"]},
                    [*both("198.51.100.255"), *both("2001:db8:1::9"), Flow("192.0.2.7")],
                    [*both("198.51.101.0"), *both("2001:db8:2::9"), Flow("192.0.2.8"), Flow("a.test")]),
    "ip_is_private": case({"ip_is_private": True}, [*map(Flow, PRIVATE), *both("10.0.0.1"), *both("fd00::2")],
                          [*map(Flow, PUBLIC), *both("8.8.8.8"), *both("2001:4860::2"), Flow("a.test")]),
    "ip_version 4": case({"ip_version": 4}, both("192.0.2.1"), [*both("2001:db8::1"), Flow("a.test")]),
    "ip_version 6": case({"ip_version": 6}, both("2001:db8::1"), [*both("192.0.2.1"), Flow("a.test")]),
    "source_ip_cidr": case({"source_ip_cidr": ["127.0.0.8/29", "::1"]},
                           [*both(source="127.0.0.9"), *both(source="127.0.0.15"), *both(at="::1")],
                           [*both(source="127.0.0.7"), *both(source="127.0.0.16")]),
    "source_ip_cidr 4": case({"source_ip_cidr": "127.0.0.0/8"}, both(), both(at="::1")),
    "source_ip_is_private": case({"source_ip_is_private": True}, [*both(), *both(at="::1")], []),
    "network tcp": case({"network": "tcp"}, [Flow()], [Flow(network="udp")]),
    "network udp": case({"network": ["udp"]}, [Flow(network="udp")], [Flow()]),
}  # fmt: skip
BELOW, LOW, HIGH, ABOVE, OTHER = (free_port() for _ in range(5))
PORTS = {
    "port": case({"port": [443, 8443]}, [*both(port=443), Flow(port=8443)], [*both(port=80), Flow(port=442)]),
    "port_range": case({"port_range": ["1000:2000", ":10", "60000:"]},
                       [*both(port=1000), *both(port=2000), Flow(port=10), Flow(port=1), Flow(port=65535)],
                       [*both(port=999), *both(port=2001), Flow(port=11), Flow(port=59999)]),
    "port or port_range": case({"port": 5, "port_range": "8:9"}, [Flow(port=5), Flow(port=9)], [Flow(port=7)]),
    "source_port": case({"source_port": [LOW]}, both(source_port=LOW), both(source_port=HIGH), type="direct"),
    "source_port 6": case({"source_port": [LOW]}, both(source_port=LOW, at="::1"), both(source_port=HIGH, at="::1"),
                          type="direct"),
    "source_port_range": case({"source_port_range": f"{LOW}:{HIGH}"},
                              [*both(source_port=LOW), *both(source_port=HIGH)],
                              [*both(source_port=BELOW), *both(source_port=ABOVE)], type="direct"),
    "source_port_range open": case({"source_port_range": [f":{LOW}", f"{ABOVE}:"]},
                                   [Flow(source_port=LOW), Flow(source_port=ABOVE)],
                                   [Flow(source_port=HIGH)]),
}  # fmt: skip
SNIFF = {"action": "sniff"}
SNIFFED = {
    "protocol": case([SNIFF, {"protocol": ["http", "quic"]}],
                     [Flow(first=http("a.test")), Flow(network="udp", first=initial("a.test")[0])],
                     [Flow(first=hello("a.test")), Flow(network="udp", first=question("a.test")), *both(first=b"\0?")]),
    "protocol tls": case([SNIFF, {"protocol": "tls"}], [Flow(first=hello("a.test"))], [Flow(first=http("a.test"))]),
    "protocol dns": case([SNIFF, {"protocol": "dns"}],
                         [Flow(network="udp", first=question("a.test")), Flow(first=framed(question("a.test")))],
                         [Flow(first=http("a.test")), Flow(network="udp", first=initial("a.test")[0])]),
    "sniffers": case([{"action": "sniff", "sniffer": "tls"}, {"protocol": ["tls", "http"]}],
                     [Flow(first=hello("a.test"))], [Flow(first=http("a.test"))]),
    "not sniffed": case({"protocol": "http"}, [], [Flow(first=http("a.test"))]),
    "sniffed names": case([SNIFF, {"domain": "a.test"}],
                          [Flow(first=http("a.test")), Flow(first=hello("a.test")),
                           Flow(network="udp", first=initial("a.test")[0])],
                          [Flow(first=http("b.test")), Flow(first=hello("b.test")),
                           Flow(network="udp", first=initial("b.test")[0])]),
}  # fmt: skip
USERS = [{"username": name, "password": "secret"} for name in ("alice", "bob")]
INBOUNDS = {
    "auth_user": case({"auth_user": ["alice", "carol"]}, both(user="alice"), both(user="bob"), users=USERS),
    "inbound": case([{"inbound": ["nobody", "inbound"]}], both(), []),
    "inbound another": case([{"inbound": ["nobody", "inbound"]}], [], both()),
}
INNER = {"type": "logical", "mode": "or", "rules": [{"port": 1}, {"domain": "a.test"}]}
LOGIC = {
    "invert": case({"port": [80], "invert": True}, both(port=81), both(port=80)),
    "invert of all": case({"port": [80], "network": "tcp", "invert": True},
                          [*both(port=81), Flow(network="udp")], [Flow()]),
    "or": case(INNER, [*both(port=1), *both("a.test")], [*both(), Flow("b.test")]),
    "and": case({"type": "logical", "mode": "and", "rules": [{"port": 1}, {"domain": "a.test"}]},
                both("a.test", 1), [*both("a.test"), *both(port=1)]),
    "invert of a logical": case(INNER | {"invert": True}, [*both(), Flow("b.test")], [Flow(port=1), Flow("a.test")]),
    "invert inside": case({"type": "logical", "mode": "and",
                           "rules": [{"port": 1}, {"network": "tcp", "invert": True}]},
                          [Flow(port=1, network="udp")], [Flow(port=1), Flow(network="udp")]),
    "nested": case({"type": "logical", "mode": "and", "rules": [INNER, {"network": "udp"}]},
                   [Flow(port=1, network="udp"), Flow("a.test", network="udp")],
                   [Flow(port=1), Flow("a.test"), Flow(network="udp")]),
}  # fmt: skip
HEADLESS = [
    {"domain_keyword": "keyed"},
    {"domain_regex": "^re?x"},
    {"port_range": "1000:1001"},
    {"source_ip_cidr": "127.0.0.9"},
    {"source_port": OTHER},
    {"type": "logical", "mode": "and", "rules": [{"domain_suffix": "b.test"}, {"port": 1, "invert": True}]},
    {"ip_cidr": ["198.51.100.0/24", "2001:db8:1::/48"], "network": "udp"},
    {"domain": "a.test", "port": 1},
]
MEANT = (
    [*both("a.test", 1), *both("x.b.test"), Flow("198.51.100.1", network="udp"), Flow("2001:db8:1::1", network="udp"),
     Flow("monkeyed.test"), Flow("rx.test"), *both(port=1000), *both(source="127.0.0.9"), Flow(source_port=OTHER)],
    [*both("a.test"), *both("x.b.test", 1), Flow("198.51.100.1"), Flow("2001:db8:1::1"), *both("198.51.101.1"),
     Flow("arx.test"), *both(port=1002), *both(source="127.0.0.8")],
)  # fmt: skip
# What a rule of a set has matched counts for the rules behind it.
MARKED = [{"domain": "a.test", "port": 1}, {"domain": "b.test", "network": "udp"}, {"domain": "c.test", "port": 2}]
SETS = {
    "inline": case({"rule_set": "inline"}, *MEANT),
    "source": case({"rule_set": "source"}, *MEANT),
    "srs": case({"rule_set": "srs"}, *MEANT),
    "several": case({"rule_set": ["names", "nets"]}, [Flow("a.test"), Flow("127.0.0.9")], [Flow("b.test"), Flow()]),
    "marks": case({"rule_set": "marks"},
                  [*both("a.test", 1), *both("a.test", 2), *both("b.test", 1), Flow("b.test", 3, "udp"),
                   Flow("a.test", 3, "udp")],
                  [Flow("b.test", 3), Flow("a.test", 3), *both("d.test", 2)]),
    "with port": case({"rule_set": "names", "port": 443}, [Flow("a.test", 443)], [Flow("a.test"), Flow(port=443)]),
    "or beside": case({"rule_set": "nets", "domain": "b.test"}, [Flow("b.test"), Flow("127.0.0.9")],
                      [Flow("a.test"), Flow()]),
    "invert": case({"rule_set": "names", "invert": True}, [Flow("b.test"), Flow()], [Flow("a.test")]),
    "match source": case({"rule_set": "nets", "rule_set_ip_cidr_match_source": True},
                         [*both(source="127.0.0.9"), *both(at="::1")],
                         [*both(source="127.0.0.8"), *both("127.0.0.9")]),
    "match destination": case({"rule_set": "nets"}, [*both("127.0.0.9"), *both("::1")],
                              [*both(source="127.0.0.9"), *both(at="::1")]),
    "adguard": case({"rule_set": "adguard"},
                    [*both("ads.test"), *both("x.ads.test"), Flow("track.stars.test"), Flow("plain.test"),
                     Flow("re55.test")],
                    [*both("good.ads.test"), *both("badads.test"), Flow("ads.test.org"), Flow("x.plain.test"),
                     Flow("192.0.2.1")]),
}  # fmt: skip
ADGUARD = r"""! a comment
||ads.test^
@@||good.ads.test^
||track.*.test^
|plain.test^|
/^re\d+\.test$/
"""
REAL = {
    "names": case({"rule_set": "geosite-github"}, [*both("github.com"), Flow("api.github.com")],
                  [*both("notgithub.org"), Flow("192.0.2.1")]),
    "networks": case({"rule_set": "geoip-jp"}, [*both("1.0.16.1"), Flow("2001:200::1")],
                     [*both("8.8.8.8"), Flow("2001:4860::1"), Flow("a.test")]),
}  # fmt: skip
WHERE, SIX = socket.inet_aton("198.51.100.1"), socket.inet_pton(socket.AF_INET6, "2001:db8::1")
HIJACK = {
    "by protocol": Case([SNIFF, {"protocol": "dns", "action": "hijack-dns"}], [
        (Flow("192.0.2.53", 53, "udp", question("where.test")), WHERE),
        (Flow("192.0.2.53", 53, "udp", question("where.test", 28)), SIX),
        (Flow("192.0.2.53", 53, "tcp", framed(question("where.test"))), WHERE),
        (Flow("2001:db8::53", 5353, "udp", question("where.test")), WHERE),
        (Flow("192.0.2.53", 53, "udp", b"no question"), MISS),
    ]),
    "by port": Case([{"port": 53, "action": "hijack-dns"}], [
        (Flow("192.0.2.53", 53, "udp", question("where.test")), WHERE),
        (Flow("2001:db8::53", 53, "tcp", framed(question("where.test", 28))), SIX),
        (Flow("192.0.2.53", 54, "udp", question("where.test")), MISS),
        (Flow("192.0.2.53", 54, "tcp", framed(question("where.test"))), MISS),
    ]),
}  # fmt: skip
RESOLVE = {"action": "resolve"}
RESOLVED = {
    "resolve": case([RESOLVE | {"server": "up"}, {"ip_cidr": "198.51.100.0/24"}], both("where.test"),
                    [*both("else.test"), *both("192.0.2.1")]),
    "resolve 6": case([RESOLVE | {"server": "up"}, {"ip_cidr": "2001:db8::/64"}], both("where.test"),
                      both("else.test")),
    "ipv4_only": case([RESOLVE | {"server": "up", "strategy": "ipv4_only"}, {"ip_cidr": "2001:db8::/32"}], [],
                      both("where.test")),
    "ipv6_only": case([RESOLVE | {"server": "up", "strategy": "ipv6_only"}, {"ip_cidr": "2001:db8::/32"}],
                      both("where.test"), []),
    "private": case([RESOLVE | {"server": "up"}, {"ip_is_private": True}], both("private.test"), both("where.test")),
    "another server": case([RESOLVE | {"server": "hosts"}, {"ip_cidr": "203.0.113.1"}], both("where.test"), []),
    "not resolved": case({"ip_cidr": "198.51.100.0/24"}, [], both("where.test")),
}  # fmt: skip
LEARNED = {
    "reverse": Case([{"port": 53, "action": "hijack-dns"}, {"domain": "seven.test"}], [
        (Flow("198.51.100.7"), MISS),
        (Flow("192.0.2.53", 53, "udp", question("seven.test")), socket.inet_aton("198.51.100.7")),
        (Flow("192.0.2.53", 53, "udp", question("seven.test", 28)), socket.inet_pton(socket.AF_INET6, "2001:db8::7")),
        (Flow("192.0.2.53", 53, "udp", question("eight.test")), socket.inet_aton("198.51.100.8")),
        *((flow, HIT) for flow in (*both("198.51.100.7"), *both("2001:db8::7"))),
        *((flow, MISS) for flow in (*both("198.51.100.8"), *both("2001:db8::8"))),
    ]),
}  # fmt: skip
ASKED = {"and sniffed": Case([SNIFF, {"domain": "a.test"}], []),
         **{name: Case([{"port": 53, "action": "hijack-dns"}, {"domain": f"{name}.test"}], [])
            for name in ("alias", "nine")}}  # fmt: skip
TABLE = {"names": NAMES, "addresses": ADDRESSES, "ports": PORTS, "sniffed": SNIFFED, "inbounds": INBOUNDS,
         "logic": LOGIC, "sets": SETS, "real": REAL, "hijack": HIJACK,
         "resolved": RESOLVED, "learned": LEARNED,
         "asked": ASKED}  # fmt: skip
HOSTS = ("where.test,198.51.100.1,2001:db8::1", "else.test,192.0.2.99,2001:db8:9::1", "private.test,10.0.0.1",
         "seven.test,198.51.100.7,2001:db8::7", "eight.test,198.51.100.8,2001:db8::8",
         "nine.test,198.51.100.9")  # fmt: skip


@contextlib.contextmanager
def dnsmasq(*hosts):
    """A DNS server with ``hosts``, its port."""
    port = free_port()
    command = [peers.path("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
               f"--port={port}", f"--listen-address={LOOPBACK}", "--bind-interfaces", "--user=root",
               "--pid-file=", "--cname=alias.test,nine.test"]  # fmt: skip
    with program(*command, *(f"--host-record={host}" for host in hosts), ready=port):
        yield port


@contextlib.contextmanager
def says(word, host=LOOPBACK, port=0):
    """A server for both networks that answers the first bytes with ``word``; its port."""
    port = port or free_port()
    tcp = socket.create_server((host, port), family=family(host), backlog=64)
    udp = socket.socket(family(host), socket.SOCK_DGRAM)
    udp.bind((host, port))

    def one(sock):
        with sock, contextlib.suppress(OSError):
            sock.settimeout(DEADLINE)
            if sock.recv(65536):
                sock.sendall(word)
            while sock.recv(65536):
                pass

    def streams():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=one, args=(tcp.accept()[0],), daemon=True).start()

    def datagrams():
        while True:
            data, name = udp.recvfrom(65536)
            if data == b"end":
                return
            udp.sendto(word, name)

    threading.Thread(target=streams, daemon=True).start()
    thread = threading.Thread(target=datagrams, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        udp.sendto(b"end", (host, port))
        thread.join(DEADLINE)
        tcp.shutdown(socket.SHUT_RDWR)
        tcp.close()
        udp.close()


def told(port, flow, wanted):
    """What the client of ``flow`` hears from the mixed inbound at ``port``, until it ends as ``wanted``."""
    with socket.socket(family(flow.at)) as sock:
        sock.settimeout(DEADLINE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((flow.source or flow.at, flow.source_port if flow.network == "tcp" else 0))
        sock.connect((flow.at, port))
        sock.sendall(b"\x05\x01\x02" if flow.user else b"\x05\x01\x00")
        assert exactly(sock, 2)[0] == 5
        if flow.user:
            sock.sendall(b"\x01" + bytes([len(flow.user)]) + flow.user.encode() + b"\x06secret")
            assert exactly(sock, 2) == b"\x01\x00"
        return (of_stream if flow.network == "tcp" else of_datagrams)(sock, flow, wanted)


def plainly(port, flow, wanted):
    """As ``told``, from a direct inbound."""
    kind = socket.SOCK_STREAM if flow.network == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family(flow.at), kind) as sock:
        sock.settimeout(5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((flow.source or flow.at, flow.source_port))
        sock.connect((flow.at, port))
        sock.send(flow.first)
        return sock.recv(65536)


def of_stream(sock, flow, wanted):
    sock.sendall(b"\x05\x01\x00" + encode(flow.host, flow.port))
    answer = exactly(sock, 4)
    assert answer[1] == 0, answer
    exactly(sock, {1: 6, 4: 18}[answer[3]])
    sock.sendall(flow.first)
    sock.settimeout(5)
    data = b""
    with contextlib.suppress(TimeoutError):
        while not data.endswith((wanted, HIT, MISS)) and (more := sock.recv(65536)):
            data += more
    return data


def of_datagrams(control, flow, wanted):
    control.sendall(b"\x05\x03\x00" + encode("0.0.0.0" if flow.at == LOOPBACK else "::", 0))
    answer = exactly(control, 4)
    assert answer[1] == 0, answer
    port = int.from_bytes(exactly(control, {1: 6, 4: 18}[answer[3]])[-2:])
    with socket.socket(family(flow.at), socket.SOCK_DGRAM) as sock:
        sock.bind((flow.source or flow.at, flow.source_port))
        sock.settimeout(2)
        for _ in range(3):  # a datagram may be lost
            sock.sendto(b"\0\0\0" + encode(flow.host, flow.port) + flow.first, (flow.at, port))
            with contextlib.suppress(TimeoutError):
                return sock.recv(65536)
    return b""


def rules_of(tag, case, hit):
    """The rules of a case, for its inbounds alone."""
    for rule in case.rules:
        does = {} if "action" in rule else {"outbound": "direct", "override_address": LOOPBACK, "override_port": hit}
        if "inbound" in rule:
            yield rule | does
        elif "type" in rule or "invert" in rule:
            yield {"type": "logical", "mode": "and", "rules": [{"inbound": [tag, tag + " 6"]}, rule], **does}
        else:
            yield {"inbound": [tag, tag + " 6"], **rule, **does}


def sets_in(folder):
    """``rule_set`` of the configuration; what is compiled is compiled by sing-box."""

    def tool(*words):
        subprocess.run([peers.path("sing-box"), "rule-set", *words], cwd=folder, check=True, timeout=60)

    (folder / "source.json").write_bytes(msgspec.json.encode({"version": 3, "rules": HEADLESS}))
    (folder / "adguard.txt").write_text(ADGUARD)
    tool("compile", "source.json", "-o", "srs.srs")
    tool("convert", "--type", "adguard", "adguard.txt", "-o", "adguard.srs")
    local = [folder / name for name in ("source.json", "srs.srs", "adguard.srs")]
    local += [SHARED / f"{one.rules[0]['rule_set']}.srs" for one in REAL.values() if SHARED.is_dir()]
    return [
        {"type": "inline", "tag": "inline", "rules": HEADLESS},
        {"type": "inline", "tag": "marks", "rules": MARKED},
        {"type": "inline", "tag": "names", "rules": [{"domain": "a.test"}]},
        {"type": "inline", "tag": "nets", "rules": [{"ip_cidr": ["127.0.0.9/32", "::1"]}]},
        *({"type": "local", "tag": file.stem, "path": str(file),
           "format": "source" if file.suffix == ".json" else "binary"} for file in local),
    ]  # fmt: skip


def configuration(dns, hit, miss, sets):
    """``(configuration, {inbound: port})`` with every case of the table."""
    ports, inbounds, rules = {}, [], []
    there = {group: cases for group, cases in TABLE.items() if cases is not REAL or SHARED.is_dir()}
    for group, cases in there.items():
        for name, one in cases.items():
            tag = name if group == "inbounds" else f"{group} {name}"
            for at in {flow.at for flow, _ in one.flows} or {LOOPBACK}:
                key = tag if at == LOOPBACK else tag + " 6"
                ports[key] = free_port()
                inbounds.append({"type": "mixed", "tag": key, "listen": at, "listen_port": ports[key], **one.inbound})
            rules += rules_of(tag, one, hit)
    final = {"outbound": "direct", "override_address": LOOPBACK, "override_port": miss}
    return {
        "log": {"level": "debug"},
        "dns": {
            "servers": [
                {"tag": "up", "type": "udp", "server": LOOPBACK, "server_port": dns},
                {"tag": "hosts", "type": "hosts", "predefined": {"where.test": "203.0.113.1"}},
            ],
            "reverse_mapping": True,
        },
        "inbounds": inbounds,
        "outbounds": [DIRECT],
        "route": {
            "rules": [*rules, {"network": ["tcp", "udp"], **final}],
            "rule_set": sets,
            "default_domain_resolver": "up",
        },
    }, ports


def run_sing_box(config, ready):
    return program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=ready)


@contextlib.contextmanager
def run_ours(config, ready):
    command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "gateway", "run", "-c", "CONFIG"]
    with instance(ready) as name, program(*command, "--instance", name, config=config, ready=ready) as process:
        yield process


PROGRAMS = {"sing-box": run_sing_box, "ours": run_ours}


@pytest.fixture(scope="module")
def ports(tmp_path_factory):
    """Both programs run; for each the ports of its inbounds."""
    with contextlib.ExitStack() as stack:
        dns, hit, miss = (stack.enter_context(one) for one in (dnsmasq(*HOSTS), says(HIT), says(MISS)))
        sets = sets_in(tmp_path_factory.mktemp("sets"))
        found = {}
        for who, run in PROGRAMS.items():
            config, found[who] = configuration(dns, hit, miss, sets)
            stack.enter_context(run(config, next(reversed(found[who].values()))))
        yield found


def judge(ports, who, group, name):
    tag = name if group == "inbounds" else f"{group} {name}"
    one = TABLE[group][name]
    wrong = []
    for flow, wanted in one.flows:
        ask = plainly if one.inbound.get("type") == "direct" else told
        answer = ask(ports[who][tag if flow.at == LOOPBACK else tag + " 6"], flow, wanted)
        if not answer.endswith(wanted):
            said = {key: value for key, value in flow._asdict().items() if value != Flow._field_defaults[key]}
            wrong.append(f"{wanted!r} expected, {answer[-40:]!r} told to {said}")
    assert not wrong, "\n".join(wrong)


def every(group):
    names = [pytest.param(name, id=name.replace(" ", "-")) for name in TABLE[group]]
    by_name = pytest.mark.parametrize("name", names)
    by_who = pytest.mark.parametrize("who", PROGRAMS)
    return lambda function: by_name(by_who(function))


@every("names")
def test_names(ports, who, name):
    judge(ports, who, "names", name)


@every("addresses")
def test_addresses(ports, who, name):
    judge(ports, who, "addresses", name)


@every("ports")
def test_ports(ports, who, name):
    judge(ports, who, "ports", name)


@every("sniffed")
def test_sniffed(ports, who, name):
    judge(ports, who, "sniffed", name)


@pytest.mark.parametrize(("who", "wanted"), [("sing-box", MISS), ("ours", HIT)])
def test_a_sniffed_name_beside_an_asked_one(ports, who, wanted):
    """Where the client asks for one name and says another, sing-box's rules see what was said. The flow goes to what
    was asked, so that is what ours see."""
    flow = Flow("a.test", first=hello("b.test"))
    assert told(ports[who]["asked and sniffed"], flow, wanted) == wanted


@every("inbounds")
def test_inbounds_and_their_users(ports, who, name):
    judge(ports, who, "inbounds", name)


@every("logic")
def test_invert_and_logical(ports, who, name):
    judge(ports, who, "logic", name)


@every("sets")
def test_rule_sets(ports, who, name):
    judge(ports, who, "sets", name)


@every("real")
def test_real_rule_sets(ports, who, name):
    if not SHARED.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no rule sets in {SHARED}")
    judge(ports, who, "real", name)


@every("hijack")
def test_hijacked_dns(ports, who, name):
    judge(ports, who, "hijack", name)


@every("resolved")
def test_resolve(ports, who, name):
    judge(ports, who, "resolved", name)


@every("learned")
def test_names_that_dns_answers_taught(ports, who, name):
    judge(ports, who, "learned", name)


@pytest.mark.parametrize("name", ["alias", "nine"])
@pytest.mark.parametrize("who", PROGRAMS)
def test_the_name_of_an_address_behind_an_alias(ports, who, name):
    """What was asked for is alias.test, and so a client will call it; sing-box takes the name that has the address."""
    port = ports[who][f"asked {name}"]
    asked = Flow("192.0.2.53", 53, "udp", question("alias.test"))
    assert told(port, asked, b"").endswith(socket.inet_aton("198.51.100.9"))
    wanted = HIT if (name == "alias") == (who == "ours") else MISS
    assert told(port, Flow("198.51.100.9"), wanted) == wanted


WANTED = ("known", "nobody")
PROCESSES = {
    "process_name": ({"process_name": ["none", "known"]}, ("other", "nobody")),
    "process_path": ({"process_path": ["/bin/none", "FOLDER/known"]}, ("other", "nobody")),
    "process_path_regex": ({"process_path_regex": "^FOLDER/k.*n$"}, ("other", "nobody")),
    "user": ({"user": ["root", "nobody"]}, ("known", "daemon")),
    "user_id": ({"user_id": [0, 65534]}, ("known", "daemon")),
    "process_name and user": ({"process_name": "known", "user": "nobody"}, ("known", "daemon")),
}
"""Rule, and a program and user that it does not hold for;
"known" as "nobody" is what it holds for."""
CLIENT = """
import socket, sys
network, host, port, source, asked = sys.argv[1:]
asked = bytes.fromhex(asked)
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.socket(family, socket.SOCK_DGRAM if network == "udp" else socket.SOCK_STREAM) as sock:
    sock.settimeout(5)
    sock.bind((host, int(source)))
    sock.connect((host, int(port)))
    if asked:
        sock.send(asked)
    reply = b""
    if asked.startswith(b"CONNECT"):
        while not reply.endswith(b"\\r\\n\\r\\n"):
            reply += sock.recv(1) or exit("refused")
    elif asked:
        # The inbound's own address is in it.
        sock.recv(2 + (22 if ":" in host else 10), socket.MSG_WAITALL)
    sock.send(b"?")
    data = b""
    while not data.endswith((b"hit", b"miss")):
        data += sock.recv(65536) or exit("closed")
print("hit" if data.endswith(b"hit") else "miss")
"""


class Clients:
    """Copies of the interpreter under names of their own, started as other users."""

    def __init__(self, folder):
        self.folder = folder
        folder.chmod(0o755)
        for name in ("known", "other"):
            shutil.copy(Path(sys.executable).resolve(), folder / name)

    def say(self, name, user, network, at, port, asked):
        """What the client hears. Its source port is no ephemeral one: sing-box takes the owner of any socket that has
        it, be it its own to a server."""
        command = [self.folder / name, "-I", "-S", "-c", CLIENT, network, at, str(port), str(free_port()), asked.hex()]
        done = subprocess.run(
            command, user=user, capture_output=True, text=True, timeout=DEADLINE, check=False, cwd="/"
        )
        return done.stdout.strip().encode() or done.stderr


@pytest.fixture(scope="module")
def processes():
    with contextlib.ExitStack() as stack:
        clients = Clients(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gateway-clients-"))))
        hit, miss = stack.enter_context(says(HIT)), stack.enter_context(says(MISS))
        found = {}
        for who, run in PROGRAMS.items():
            ports, inbounds, rules = {}, [], []
            for name, (rule, _) in PROCESSES.items():
                rule = msgspec.json.decode(msgspec.json.encode(rule).replace(b"FOLDER", bytes(clients.folder)))
                tags = [f"{name} {kind} {at}" for kind in ("direct", "mixed") for at in (LOOPBACK, "::1")]
                for tag in tags:
                    ports[tag] = free_port()
                    kind, at = tag.split()[-2:]
                    inbounds.append({"type": kind, "tag": tag, "listen": at, "listen_port": ports[tag]})
                to = {"outbound": "direct", "override_address": LOOPBACK, "override_port": hit}
                rules.append({"type": "logical", "mode": "and", "rules": [{"inbound": tags}, rule], **to})
            rules.append({"network": ["tcp", "udp"], **to, "override_port": miss})
            config = {"inbounds": inbounds, "outbounds": [DIRECT], "route": {"rules": rules}}
            stack.enter_context(run(config, ports[tags[0]]))
            found[who] = ports
        yield clients, found


SOCKS = b"\x05\x01\x00\x05\x01\x00"
WAYS = {
    "tcp": ("direct", "tcp", b""),
    "udp": ("direct", "udp", b""),
    "socks": ("mixed", "tcp", SOCKS + encode("192.0.2.1", 80)),
    "http": ("mixed", "tcp", b"CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n"),
    "socks by name": ("mixed", "tcp", SOCKS + encode("a.test", 80)),
}


@pytest.mark.root
@pytest.mark.parametrize("at", LOOPBACKS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", PROGRAMS)
def test_processes_and_users(processes, who, way, at):
    clients, ports = processes
    kind, network, asked = WAYS[way]
    wrong = []
    for name, (_, unwanted) in PROCESSES.items():
        port = ports[who][f"{name} {kind} {at}"]
        for client in (WANTED, unwanted):
            wanted = HIT if client == WANTED else MISS
            answer = clients.say(*client, network, at, port, asked)
            if who == "sing-box" and answer != wanted == HIT:
                # Its search of /proc finds nothing where some process ends meanwhile.
                answer = clients.say(*client, network, at, port, asked)
            if answer != wanted:
                wrong.append(f"{name}: {wanted!r} expected, {answer!r} told to {client}")
    assert not wrong, "\n".join(wrong)
