"""Hints, shared prefixes and the DNS policy: packets through a whole gateway that is told otherwise by reloads."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from itertools import count
from typing import Any

import dns.rcode
import pytest

from gateway.config.text import parse

from .naming import CLIENTS, RULES, SITES, Naming, naming
from .whole import ROOT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
FAMILIES = (4, 6)
numbers = count(1)
KERNEL, RELAYED, PROXIED = ("direct", "kernel"), ("direct", "sniff"), ("far", "sniff")
DOH = {4: "198.51.100.240", 6: "2001:db8:2::f:240"}


@pytest.fixture(scope="module")
def house() -> Iterator[Naming]:
    if os.geteuid():
        pytest.skip("needs root")
    with naming() as house:
        yield house


@pytest.fixture
def number() -> int:
    return next(numbers)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_connection_of_the_same_kind_is_the_kernels(house: Naming, family: int, number: int) -> None:
    house.reload({"hints": "on"})
    site, name = f"{SITES[family]}{number}", f"n{number}.example"
    assert house.connect(site, name) == RELAYED
    assert house.connect(site, name) == KERNEL
    told = house.explain(site, CLIENTS[family][0])
    assert told["where"] == "kernel"
    assert "one like it was sniffed" in told["text"][-1]
    assert house.connect(site, name, client=1) == RELAYED, "another client has to show it itself"
    assert house.connect(site, name, port=443) == RELAYED, "and another port"
    # What makes it less than strict: the second name is not seen.
    assert house.connect(site, f"w{number}.far.example") == KERNEL
    house.resolve(f"w{number}.far.example", site, client=1)
    assert house.connect(site, name) == RELAYED, "our DNS says that the address has two names"
    assert house.connect(site, f"w{number}.far.example") == PROXIED


@pytest.mark.parametrize("family", FAMILIES)
def test_no_hint_where_a_connection_went_another_way(house: Naming, family: int, number: int) -> None:
    house.reload({"hints": "on"})
    site = f"{SITES[family]}{number}"
    assert house.connect(site, f"w{number}.far.example") == PROXIED
    for _ in range(2):
        assert house.connect(site, f"n{number}.example") == RELAYED
    assert house.table("hints forbidden") > 0


def test_a_reload_ends_hints(house: Naming, number: int) -> None:
    house.reload({"hints": "on"})
    site, name = f"{SITES[4]}{number}", f"n{number}.example"
    assert [house.connect(site, name) for _ in range(2)] == [RELAYED, KERNEL]
    house.reload()
    assert [house.connect(site, name) for _ in range(2)] == [RELAYED] * 2, "strict has none by default"
    assert house.table("hints") == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_needs_a_sniff(house: Naming, family: int, number: int) -> None:
    house.reload({"shared_prefixes": "on"})
    net = SITES[family] if family == 4 else "2001:db8:2::5:"
    sites = [f"{net}{100 + 10 * number + n}" for n in range(4)]
    names = [f"n{number}.example", f"w{number}.far.example", f"m{number}.example", f"x{number}.far.example"]
    house.resolve(names[0], sites[0])
    for site, name in zip(sites[1:], names[1:], strict=True):
        house.resolve(name, site)
    assert house.table("shared prefixes") > 0
    told = house.explain(sites[0], CLIENTS[family][0])
    assert (told["verdict"], "the prefix" in told["text"][-1]) == ("sniff", True)
    assert house.connect(sites[0], names[0]) == RELAYED
    assert house.connect(sites[0], names[0]) == KERNEL, "confirmed"
    assert house.connect(sites[0], names[0], client=1) == RELAYED, "not for others"
    assert house.connect(sites[1], names[1]) == ("far", "user")
    house.reload()
    assert house.connect(sites[0], names[0], client=1) == KERNEL, "strict believes names"


@pytest.mark.parametrize("family", FAMILIES)
def test_balanced_does_not_guess_in_a_shared_prefix(house: Naming, family: int, number: int) -> None:
    net = "192.0.2." if family == 4 else "2001:db8:5::"
    house.server.run(["ip", "route", "add", "local", f"{net}0/{24 if family == 4 else 64}", "dev", "lo"], check=True)
    try:
        house.rules = [*RULES, {"ip_cidr": f"{net}0/{24 if family == 4 else 48}", "outbound": "direct"}]
        house.reload({"mode": "balanced", "hints": "off"})
        assert house.connect(f"{net}9", "unknown.example") == KERNEL, "by the address rule"
        told, status = house.explain(f"{net}9", CLIENTS[family][0]), house.told()
        assert (told["where"], told["skipped"]) == ("kernel", status["skipped"])
        assert [rule["match"] for rule in status["skipped"]] == ["domain_suffix=far.example"]
        for site, name in enumerate(("a.example", "a.far.example", "b.example"), 1):
            house.resolve(f"{name[:2]}{number}{name[1:]}", f"{net}{site}")
        assert house.connect(f"{net}9", "unknown.example") == RELAYED
        assert house.connect(f"{net}9", "www.far.example") == PROXIED
    finally:
        house.rules = RULES


def refused(house: Naming, address: str, port: int, kind: int = socket.SOCK_STREAM) -> bool:
    with house.client.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        sock.settimeout(10)
        try:
            sock.connect((address, port))
            sock.send(b"?")
            assert sock.recv(100) == b"direct"
        except ConnectionRefusedError:
            return True
    return False


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("family", FAMILIES)
def test_encrypted_dns_is_refused(house: Naming, family: int, kind: int) -> None:
    house.reload()
    assert not refused(house, DOH[family], 853, kind)
    house.reload(dns_policy={"dot": "block", "doh": [DOH[family], "doh.example"]})
    assert refused(house, DOH[family], 853, kind)
    assert refused(house, f"{SITES[family]}9", 853, kind)
    assert refused(house, DOH[family], 443, kind)
    assert not refused(house, DOH[family], 80, kind)
    for port, verdict in ((853, "reject"), (443, "reject"), (80, "sniff")):
        assert house.explain(DOH[family], CLIENTS[family][0], port)["verdict"] == verdict
    assert not refused(house, f"{SITES[family]}9", 7000, kind)
    house.reload()
    assert not refused(house, DOH[family], 853, kind)


def test_names_that_are_answered_here(house: Naming) -> None:
    house.far.zone |= {
        ("use-application-dns.net", "A"): ["192.0.2.1"], ("a.doh.example", "A"): ["192.0.2.1"],
        ("_dns.resolver.arpa", "SVCB"): ["1 dns.example. alpn=dot"],
        ("ech.example", "HTTPS"): ["1 . alpn=h2 ech=AAT+DQAA"],
    }  # fmt: skip
    house.reload()
    assert house.ask("use-application-dns.net").rcode() == dns.rcode.NXDOMAIN
    found = house.ask("_dns.resolver.arpa", "SVCB")
    assert (found.rcode(), found.answer) == (dns.rcode.NOERROR, [])
    assert house.ask("a.doh.example").answer
    assert "ech" in str(house.ask("ech.example", "HTTPS").answer[0])
    house.reload(dns_policy={"canary": False, "ddr": "forward", "ech": "strip", "doh": ["doh.example"]})
    assert house.ask("use-application-dns.net").answer
    assert house.ask("_dns.resolver.arpa", "SVCB").answer
    assert house.ask("a.doh.example").rcode() == dns.rcode.NXDOMAIN
    assert str(house.ask("ech.example", "HTTPS").answer[0][0]) == '1 . alpn="h2"'


def documented() -> dict[str, Any]:
    """The ``gateway`` object of the page."""
    text = (ROOT / "docs/names.md").read_text().partition("```jsonc\n")[2].partition("```")[0]
    found: dict[str, Any] = parse(text, "names.md")["gateway"]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_of_the_page(house: Naming, family: int, number: int) -> None:
    house.reload(**documented())
    assert house.ask("anything.dns.example").rcode() == dns.rcode.NXDOMAIN
    site, name = f"{SITES[family]}{number}", f"n{number}.example"
    assert refused(house, DOH[family], 443)
    assert refused(house, site, 853)
    assert [house.connect(site, name) for _ in range(2)] == [RELAYED, KERNEL]


def test_status_shows_how_full_tables_are(house: Naming, number: int) -> None:
    house.reload()
    house.resolve(f"n{number}.example", f"{SITES[4]}{number}")
    told = house.told()["names"]
    assert told["addresses"]["now"] > 0
    assert told["addresses"]["most"] == 65536
    assert told["fullest learned set"]["now"] > 0
    assert {"now", "most", "evicted"} == set(told["hints"])
    text = house.command("status").out
    assert f"addresses {told['addresses']['now']} of 65536" in text
