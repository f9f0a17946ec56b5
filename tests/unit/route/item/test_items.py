"""Items one by one."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.route.item.adguard_domain import AdGuardDomain
from gateway.route.item.ipset import PRIVATE, IPSet
from gateway.route.item.names import NameItem
from gateway.route.item.table import ITEMS
from gateway.route.match import Subject


def name(key: str, value: Any, host: str) -> bool:
    item = ITEMS[key].parse(value)
    assert isinstance(item, NameItem)
    return item.holds(host)


@pytest.mark.parametrize(
    ("key", "value", "host", "expected"),
    [
        ("domain", "a.example", "a.example", True), ("domain", "a.example", "b.a.example", False),
        ("domain", "A.example", "a.example", False),  # items are not lower-cased
        ("domain_suffix", "example", "example", True), ("domain_suffix", "example", "a.b.example", True),
        ("domain_suffix", "example", "anexample", False), ("domain_suffix", ".example", "example", False),
        ("domain_suffix", ".example", "a.example", True), ("domain_suffix", "a.example", "ba.example", False),
        ("domain_suffix", ["x", "b.example"], "a.b.example", True),
        ("domain_keyword", ["one", "two"], "a-two-b", True), ("domain_keyword", "one", "on.e", False),
        ("domain_regex", r"^a\d+\.", "a12.example", True), ("domain_regex", r"^a\d+\.", "ba12.example", False),
        ("domain_regex", r"\.example$", "x.example", True),
    ],
)  # fmt: skip
def test_names(key: str, value: Any, host: str, expected: bool) -> None:
    assert name(key, value, host) is expected


def test_a_flow_without_a_name_matches_no_name() -> None:
    for key, value in (("domain_regex", ".*"), ("domain_keyword", "a"), ("domain_suffix", "a")):
        assert not ITEMS[key].parse(value).match(Subject())


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("domain_regex", "(?=a)", "RE2"), ("domain_regex", r"(a)\1", "RE2"), ("process_path_regex", "(", "RE2"),
        ("ip_cidr", "192.0.2.0/33", "prefix"), ("ip_cidr", "x", "prefix"), ("port", 65536, "0..65535"),
        ("port", "80", "number"), ("port", True, "number"), ("port_range", "80", "port range"),
        ("port_range", "a:b", "port range"), ("port_range", "1:70000", "65535"), ("network", "icmp", "tcp"),
        ("ip_version", 5, "4 or 6"), ("ip_version", True, "4 or 6"), ("domain", "", "empty"), ("domain", 4, "text"),
        ("user_id", "root", "number"), ("group_id", "root", "number"), ("group_id", -1, "0..4294967294"),
        ("group", 100, "text"), ("cgroup", 1, "text"), ("cgroup", "", "empty"),
        ("cgroup", "system.slice", 'write "/system.slice"'), ("cgroup", "/sys/fs/cgroup/a", "mount point"),
        ("cgroup", "/a/../b", "as the kernel does"), ("cgroup", "/a//b", "as the kernel does"),
        ("source_mac_address", "00:53:00:12:34", "hardware address"),
        ("source_mac_address", "00:53:00:12:34:5g", "hardware address"), ("source_interface", "a/b", "interface name"),
        ("source_interface", "eth*", "interface name"), ("source_interface", "x" * 16, "interface name"),
        ("source_hostname", [""], "empty"), ("query_type", "WHAT", "AAAA"), ("ip_is_private", "yes", "true or false"),
    ],
)  # fmt: skip
def test_bad_values(key: str, value: Any, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        ITEMS[key].parse(value)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [("1000:2000", (1000, 2000), (999, 2001)), (":10", (0, 10), (11,)), ("65000:", (65535,), (64999,)),
     ("9:3", (), (3, 5, 9))],
)  # fmt: skip
def test_port_ranges(text: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    item = ITEMS["port_range"].parse(text)
    for port in (*inside, *outside):
        one = Subject()
        one.port = port
        assert item.match(one) is (port in inside)


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32)), max_size=8), st.integers(0, 255))
def test_ip_sets_agree_with_ipaddress(prefixes: list[tuple[int, int]], last: int) -> None:
    networks = [ip_network(f"192.0.2.{host}/{bits}", strict=False) for host, bits in prefixes]
    address = ip_address(f"192.0.2.{last}")
    found = (4, int(address)) in IPSet.of([str(network) for network in networks])
    assert found == any(address in network for network in networks)


@given(st.integers(0, (1 << 128) - 1))
def test_families_do_not_mix(number: int) -> None:
    assert (6, number) in IPSet.of(["::/0"])
    assert (4, number & 0xFFFFFFFF) not in IPSet.of(["::/0"])


@pytest.mark.parametrize(
    ("text", "private"),
    [("10.1.2.3", True), ("172.31.0.1", True), ("172.32.0.1", False), ("127.0.0.1", True), ("169.254.1.1", True),
     ("224.0.0.251", True), ("0.0.0.0", True), ("0.0.0.1", False), ("100.64.0.1", False), ("255.255.255.255", False),
     ("192.0.2.1", False), ("fd00::1", True), ("fe80::1", True), ("ff02::1", True), ("::1", True), ("::", True),
     ("2001:db8::1", False)],
)  # fmt: skip
def test_private(text: str, private: bool) -> None:
    ip = ip_address(text)
    assert ((ip.version, int(ip)) in PRIVATE) is private


@pytest.mark.parametrize(
    ("key", "host", "expected"),
    [("\na.example", "a.example", True), ("\na.example", "x.a.example", True), ("\na.example", "xa.example", False),
     ("\ra.example", "xa.example", True), ("a.example", "x.a.example", False), ("a.example", "a.example", True),
     ("\nads\b", "x.ads.example", True), ("\nads\b", "xads.example", False), ("\na*.example", "abc.example", True),
     ("a*c.example", "a.b.c.example", True), ("\n*ads.example", "x-ads.example", True)],
)  # fmt: skip
def test_adguard_keys(key: str, host: str, expected: bool) -> None:
    assert AdGuardDomain(frozenset({key})).holds(host) is expected
