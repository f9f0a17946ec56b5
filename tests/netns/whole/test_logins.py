"""Whoever is logged in by SSH is never steered away: answers are not, and what this host begins to him is direct unless
a rule names his address."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gateway.kernel import mark
from gateway.service.control import ask
from tests.sshd import Sshd

from .conftest import DIRECT, PROXIED, USERSPACE, Whole, until

pytestmark = [pytest.mark.root, pytest.mark.peer("sshd")]
LAN = ("192.168.7.1", "2001:db8:1::1")
WAN = ("203.0.113.1", "2001:db8:3::1")


@pytest.fixture
def sshd(whole: Whole) -> Iterator[Sshd]:
    """Everything is proxied, by the last rule, and one site by its address."""
    whole.rules = [{"ip_cidr": [*PROXIED], "outbound": "far"}, {"network": ["tcp", "udp"], "outbound": "far"}]
    whole.start("open", open_tcp=[22])
    sshd = Sshd(whole.lab, whole.gateway)
    try:
        yield sshd
    finally:
        sshd.close()


def classes(whole: Whole, *words: str) -> set[int]:
    """Of tracked connections."""
    rows = whole.gateway.run(["conntrack", "-L", *words]).out
    return {int(one) & mark.CLASS for one in re.findall(r" mark=(\d+)", rows)}


def verdict(whole: Whole, site: str, kind: str = "tcp") -> str:
    """That the kernel has for a flow that this host begins, which is answered."""
    before = whole.counted()
    whole.ask(kind, whole.gateway, site)
    (changed,) = [name for name, count in whole.counted().items() if count != before[name]]
    return changed


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_answers_are_never_steered(whole: Whole, sshd: Sshd, family: int) -> None:
    """From the LAN, from the WAN, and from an address that a rule sends to the proxy."""
    server, flag = whole.lab.host("server"), ("ipv4", "ipv6")[family]
    assert sshd.run(whole.client, LAN[family], "true").ok
    for source in ("", DIRECT[family], PROXIED[family]):
        before = whole.counted()
        done = sshd.run(server, WAN[family], "true", *(["-b", source] if source else []))
        assert done.ok, f"from {source or 'the WAN'}: {done.err}"
        after = whole.counted()
        assert (after["to_user"], after["to_sniff"]) == (before["to_user"], before["to_sniff"])
    assert classes(whole, "-f", flag, "-p", "tcp", "--orig-port-dst", "22") == {0}


@pytest.mark.slow
@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
def test_what_this_host_begins_to_a_peer_is_direct(whole: Whole, sshd: Sshd, family: int) -> None:
    server, gateway = whole.lab.host("server"), whole.gateway
    assert verdict(whole, DIRECT[family]) == "to_user", "by the last rule"
    with sshd.session(server, WAN[family], "-b", DIRECT[family]):
        assert until(lambda: verdict(whole, DIRECT[family]) == "to_direct", 15)
        assert verdict(whole, DIRECT[family], "udp") == "to_direct"
        request = {"command": "explain", "destination": DIRECT[family], "port": 7}
        told = ask(whole.folder, request)
        assert (told["where"], told["verdict"]) == ("kernel", "direct")
        assert "a login from there runs on this host" in told["text"][-1]
        # A client of the LAN is somebody else, and so is another host.
        assert whole.ask("tcp", whole.client, DIRECT[family]) == USERSPACE[family]
        assert whole.ask("tcp", gateway, PROXIED[family]) == USERSPACE[family]
    assert until(lambda: verdict(whole, DIRECT[family]) == "to_user", 15)


@pytest.mark.slow
def test_a_rule_that_names_the_peer_has_the_last_word(whole: Whole, sshd: Sshd) -> None:
    server = whole.lab.host("server")
    named, other = (WAN[0], "-b", PROXIED[0]), (WAN[1], "-b", DIRECT[1])
    with sshd.session(server, *named), sshd.session(server, *other):
        assert until(lambda: verdict(whole, DIRECT[1]) == "to_direct", 15), "the look was had"
        assert whole.ask("tcp", whole.gateway, PROXIED[0]) == USERSPACE[0]
