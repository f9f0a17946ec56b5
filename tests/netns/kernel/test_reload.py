"""Plans that the compiler makes of random rules, one reload after the other: the kernel takes each, nothing is left."""

from __future__ import annotations

import random
import re
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from gateway.core.errors import KernelError
from gateway.kernel.nft.writer import Writer
from gateway.kernel.plan import (
    Capture,
    LearnedChange,
    Origin,
    PortRow,
    Profile,
    SourceClass,
    SourceSpan,
    Span,
    Steering,
    Verdict,
)
from tests.unit.route import brute

pytestmark = pytest.mark.root
CAPTURE = Capture(("lan0",), 7893, 5353)


def names(net) -> set[str]:
    """Chains, maps and sets of the owned table that are not in its skeleton."""
    text = net.nft("list", "table", "inet", "gateway")
    return set(re.findall(r"^\t(?:chain|map|set) (g\d+_\w+|ip[46]_\w+|learned\w+)", text, re.M))


def plain(default: Verdict, *, learned: bool = True, port: int = 65535) -> Steering:
    profile = Profile((), (), default, default, learned)
    rows = tuple(PortRow(network, 0, port, 0) for network in ("tcp", "udp"))
    return Steering((profile,), (SourceClass(rows),), (Origin((), (), 0),), (), 0)


@pytest.fixture
def writer(net):
    writer = net.gateway.call(Writer)
    yield writer
    writer.close()


def test_compiled_plans_one_after_the_other(net, writer):
    sizes = []
    for seed in range(25):
        steering = brute.configuration(random.Random(seed)).compiled.steering
        sizes.append(len(steering.profiles))
        net.gateway.call(lambda steering=steering: writer.apply(steering, CAPTURE))
    assert max(sizes) > 3
    net.gateway.call(lambda: writer.apply(plain(Verdict.USER, learned=False), CAPTURE))
    assert names(net) == {f"g26_{name}" for name in ("class_0", "profile_0", "forwarded", "local")}


def test_a_refused_reload_changes_nothing(net, writer):
    net.gateway.call(lambda: writer.apply(plain(Verdict.USER), CAPTURE))
    before = net.nft("-a", "list", "table", "inet", "gateway")
    # There is no such profile, so no set for this change.
    change = LearnedChange(3, 4, 1, None, Verdict.USER, 9)
    with pytest.raises(KernelError):
        net.gateway.call(lambda: writer.apply(plain(Verdict.DROP), CAPTURE, [change]))
    assert net.nft("-a", "list", "table", "inet", "gateway") == before
    net.gateway.call(lambda: writer.apply(plain(Verdict.DROP), CAPTURE))
    assert "goto to_drop" in net.nft("list", "chain", "inet", "gateway", "g3_profile_0")


def dropping(site: IPv4Address | IPv6Address, number: int) -> Steering:
    """All to ``site`` is dropped by a map whose content is another one each time, and all else of the table, and what
    comes from elsewhere or goes to other ports, is direct."""
    many = [Span(n, n + number % 9, Verdict.USER) for n in range(1 << 24, (1 << 24) + 5000, 10)]
    here = (Span(int(site), int(site), Verdict.DROP),)
    spans = ((*many, *here), ()) if site.version == 4 else ((), (*many, *here))
    profiles = (
        Profile(*spans, Verdict.DIRECT, Verdict.DIRECT, False),
        Profile((), (), Verdict.DIRECT, Verdict.DIRECT, False),
    )
    classes = [SourceClass(tuple(PortRow(network, 1, 9999, one) for network in ("tcp", "udp"))) for one in (0, 1)]
    every = SourceSpan(0, (1 << (32 if site.version == 4 else 128)) - 1, 0)
    origin = Origin((every,), (), 1) if site.version == 4 else Origin((), (every,), 1)
    return Steering(profiles, tuple(classes), (origin,), (), 0)


@pytest.mark.parametrize("family", [4, 6])
def test_no_packet_meets_rules_whose_sets_are_empty(net, writer, family):
    """Each is judged by the old ones or by the new ones, as many as can be sent while they change."""
    site = ip_address("198.51.100.1" if family == 4 else "2001:db8:2::1")
    ip = "ip" if family == 4 else "ip6"
    net.nft(f"add table {ip} watch; add chain {ip} watch out {{ type filter hook postrouting priority 0; }};"
            f"add rule {ip} watch out {ip} daddr {site} udp dport 7777 counter")  # fmt: skip
    net.gateway.call(lambda: writer.apply(dropping(site, 0), CAPTURE))
    sent, end = 0, threading.Event()

    def send() -> None:
        nonlocal sent
        with net.client.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            while not end.is_set():
                sock.sendto(b"x", (str(site), 7777))
                sent += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for number in range(1, 100):
            net.gateway.call(lambda number=number: writer.apply(dropping(site, number), CAPTURE))
    finally:
        end.set()
        thread.join()
        told = net.nft("list", "chain", ip, "watch", "out")
        net.nft("delete", "table", ip, "watch")
    assert sent > 1000
    assert "packets 0 " in told, f"of {sent}: {told}"


@pytest.mark.parametrize("family", [4, 6])
def test_elements_whatever_was_there(net, writer, family):
    net.gateway.call(lambda: writer.apply(plain(Verdict.USER), CAPTURE))
    change = LearnedChange(0, family, 0xC0000201, Verdict.USER, Verdict.DIRECT, 600)
    writer.elements([change])  # the old one is not there
    writer.elements([change])  # the new one is there already: an element of a set may be added again
    writer.elements([change._replace(old=Verdict.DIRECT, new=Verdict.SNIFF)])
    listed = [net.nft("list", "set", "inet", "gateway", f"learned{family}_0_{name}") for name in ("direct", "sniff")]
    assert ["elements" in text for text in listed] == [False, True]
    with pytest.raises(KernelError) as caught:
        writer.elements([change._replace(profile=9)])
    assert caught.value.errno == 2
    # The library still works on the same socket.
    net.gateway.call(lambda: writer.apply(plain(Verdict.DIRECT), CAPTURE, [change._replace(old=Verdict.SNIFF)]))
    assert "elements" in net.nft("list", "set", "inet", "gateway", f"learned{family}_0_direct")


def test_a_thousand_elements_at_once(net, writer):
    net.gateway.call(lambda: writer.apply(plain(Verdict.USER), CAPTURE))
    writer.elements([LearnedChange(0, 6, 1 + n, Verdict.USER, Verdict.REJECT, 600) for n in range(1000)])
    assert net.nft("list", "set", "inet", "gateway", "learned6_0_reject").count("timeout 10m") == 1000


@pytest.mark.parametrize("family", [4, 6])
def test_a_full_set_has_no_room_for_some_and_keeps_the_others(net, writer, monkeypatch, family):
    monkeypatch.setattr("gateway.kernel.nft.diff.MOST_LEARNED", 8)
    net.gateway.call(lambda: writer.apply(plain(Verdict.USER), CAPTURE))

    def change(number, old, new):
        return LearnedChange(0, family, number + 1, old, new, 600)

    def held(verdict):
        text = net.nft("list", "set", "inet", "gateway", f"learned{family}_0_{verdict.name.lower()}")
        return text.count("timeout 10m")

    assert not writer.elements([change(n, None, Verdict.DIRECT) for n in range(6)])
    assert not writer.elements([change(n, None, Verdict.SNIFF) for n in range(100, 103)])
    wanted = [change(n, None, Verdict.DIRECT) for n in range(6, 100)]
    refused = writer.elements(wanted)
    assert (held(Verdict.DIRECT), len(refused)) == (8, 92)
    again = [change(n, Verdict.DIRECT, Verdict.DIRECT) for n in range(6)]
    assert not writer.elements(again), "what is there can be told anew"
    moved = writer.elements([change(n, Verdict.SNIFF, Verdict.DIRECT) for n in range(100, 103)])
    assert (held(Verdict.SNIFF), held(Verdict.DIRECT), len(moved)) == (0, 8, 3), "nor is it believed as before"
    gone = [change(200, Verdict.DIRECT, None), change(0, Verdict.DIRECT, None), change(1, Verdict.DIRECT, Verdict.DROP)]
    assert not writer.elements(gone)
    assert (held(Verdict.DIRECT), held(Verdict.DROP)) == (6, 1)


def test_a_closed_writer_refuses(net):
    writer = net.gateway.call(Writer)
    with pytest.raises(KernelError):
        writer.elements([LearnedChange(0, 4, 1, None, Verdict.USER, 9)])
    writer.close()
    writer.close()
    with pytest.raises(KernelError):
        writer.counters()
