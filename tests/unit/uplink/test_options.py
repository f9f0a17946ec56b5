"""The uplink and LAN objects: what is refused, and what they come to."""

from __future__ import annotations

import math
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

import msgspec
import pytest

from gateway.config.fields import dec_hook
from gateway.uplink import plan
from gateway.uplink.dhcp4.codec import Route
from gateway.uplink.dhcp4.lease import Lease
from gateway.uplink.dnsmasq import render
from gateway.uplink.options import LanOptions, UplinkOptions


def uplink(**fields: Any) -> UplinkOptions:
    return msgspec.convert({"interface": "wan"} | fields, UplinkOptions, dec_hook=dec_hook)


def lan(**fields: Any) -> LanOptions:
    return msgspec.convert({"interface": "lan"} | fields, LanOptions, dec_hook=dec_hook)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "dhcp4"),
        ({"dhcp4": {}, "external": True}, "external"),
        ({"dhcp4": {"client_id": "xyz"}}, "client_id"),
        ({"dhcp4": {"vendor_class": "hex:zz"}}, "vendor_class"),
        ({"dhcp4": {"hostname": "a b"}}, "hostname"),
        ({"dhcp4": {"hostname": "a\nb"}}, "hostname"),
        ({"dhcp4": {"start_delay": "1m"}}, "start_delay"),
        ({"dhcp4": {"allow": ["2001:db8::1"]}}, "IPv4"),
        ({"dhcp4": {"unknown": 1}}, "unknown"),
        ({"static": {"address": []}}, "at least one"),
        ({"static": {"address": ["192.0.2.2/24"], "gateway": ["192.0.2.1", "192.0.2.3"]}}, "one address of each"),
        ({"static": {"address": ["192.0.2.2/33"]}}, "prefix"),
        ({"dhcp4": {}, "mtu": 100}, "mtu"),
        ({"dhcp4": {}, "priority": 0}, "priority"),
        ({"dhcp4": {}, "interface": "a/b"}, "interface name"),
        ({"dhcp4": {}, "interface": ".."}, "interface name"),
        ({"dhcp4": {}, "interface": "0123456789abcdef"}, "interface name"),
        ({"dhcp4": {}, "interface": "éééééééé"}, "interface name"),
        ({"dhcp4": {}, "interface": "eth*"}, "interface name"),
    ],
)
def test_refused_uplink(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        uplink(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dhcp_server": {"range": ["192.168.8.1", "192.168.8.9"]}}, "in no network"),
        ({"address": ["192.168.8.1/24"], "dhcp_server": {"range": ["192.168.8.1", "192.168.9.9"]}}, "in no network"),
        ({"address": ["192.168.8.1/24"], "dhcp_server": {"range": ["192.168.8.9", "192.168.8.1"]}}, "range"),
        ({"address": ["192.168.8.1/24"], "dhcp_server": {"range": ["192.168.8.1"]}}, "range"),
        ({"domain": "a\nserver=192.0.2.1"}, "domain"),
        ({"interface": "lan\nlog"}, "interface"),
    ],
)
def test_refused_lan(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        lan(**fields)


LEASE = Lease(
    IPv4Address("192.0.2.9"), 24, IPv4Address("192.0.2.1"), 100, 200, 300.5, dns=(IPv4Address("192.0.2.1"),),
    domain="example.com", mtu=1400,
    routes=(
        Route(IPv4Network("0.0.0.0/0"), IPv4Address("203.0.113.1")), Route(IPv4Network("198.51.100.0/24"), None),
    ),
)  # fmt: skip


def test_lease_to_kernel() -> None:
    address, routes = plan.of_lease("wan", LEASE, 100, 100.0)
    assert (address.valid, address.preferred) == (201, 201)
    assert [(route.onlink, route.proto, route.metric) for route in routes] == [(True, 16, 100), (False, 16, 100)]
    assert plan.of_lease("wan", Lease(LEASE.address, 24, LEASE.server, *[math.inf] * 3), 1, 5.0)[0].valid is None


def test_mtu() -> None:
    assert plan.mtu(uplink(dhcp4={}), LEASE) == 1400
    assert plan.mtu(uplink(dhcp4={"use_mtu": False}), LEASE) == 0
    assert plan.mtu(uplink(dhcp4={}, mtu=1300), LEASE) == 1300
    six = uplink(dhcp4={}, mtu=600, static={"address": ["2001:db8::2/64"]})
    assert plan.mtu(six, LEASE) == 1280


def test_name_servers() -> None:
    options = uplink(dhcp4={}, static={"address": ["2001:db8::2/64"], "dns": ["2001:db8::53"], "search": ["a.example"]})
    assert plan.dns(options, LEASE, frozenset()) == (
        (ip_address("2001:db8::53"), ip_address("192.0.2.1")), ("a.example", "example.com"),
    )  # fmt: skip
    assert plan.dns(options, LEASE, frozenset({ip_address("192.0.2.1")}))[0] == (ip_address("2001:db8::53"),)
    assert plan.dns(uplink(dhcp4={"use_dns": False}), LEASE, frozenset()) == ((), ())


def test_client_id() -> None:
    mac = bytes(5) + b"\x07"
    assert plan.client_id("mac", mac, "wan", b"") == b"\x01" + mac
    assert plan.client_id("none", mac, "wan", b"") == b""
    assert plan.client_id("00:ff", mac, "wan", b"") == b"\x00\xff"
    duid = b"\x00\x04" + bytes(16)
    one, two = (plan.client_id("duid", mac, name, duid) for name in ("wan", "wan2"))
    assert one[0] == 255
    assert one[5:] == duid
    assert one != two


def test_dnsmasq_file() -> None:
    options = lan(
        address=["192.168.8.1/24", "2001:db8:8::1/64"],
        dhcp_server={"range": ["192.168.8.100", "192.168.8.199"], "lease": "1h"},
    )
    assert options.advertise == "stateless"
    lines = render.config([options], servers="/s", leases="/l", log="/g").splitlines()
    for line in (
        "interface=lan", "resolv-file=/s", "enable-ra",
        "dhcp-range=set:lan0,192.168.8.100,192.168.8.199,255.255.255.0,3600",
        "dhcp-option=tag:lan0,option:router,192.168.8.1", "dhcp-range=::,constructor:lan,ra-stateless,64,86400",
    ):  # fmt: skip
        assert line in lines
    assert lan(address=["2001:db8::1/64"]).advertise == ""
    assert lan(address=["2001:db8::1/64"], ra="slaac").advertise == "slaac"
    assert render.upstream([ip_address("192.0.2.1")]) == "nameserver 192.0.2.1\n"
