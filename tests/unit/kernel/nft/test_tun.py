"""The table of a tun inbound as text: its marks are mark.py's, content follows the plan, a change is a difference."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from gateway.kernel import mark
from gateway.kernel.nft import tun_render
from gateway.kernel.nft.tun_render import Tunnel, fill, mine, prepare, skeleton, switch

SKELETON = (Path(__file__).resolve().parents[4] / "nft/tun.nft").read_text()
PORTS = {4: 1004, 6: 1006}


def rules(chain: str, **fields) -> list[str]:
    plan = Tunnel(**{"device": "tun0", "mode": "routes", "families": (4, 6), "ports": PORTS} | fields)
    head = f"add rule inet gateway_tun_5 {chain} "
    text = prepare(plan, 5) + switch(plan, 5)
    return [line.removeprefix(head) for line in text.splitlines() if line.startswith(head)]


def test_defines_are_those_of_mark():
    defines = dict(re.findall(r"^define (\w+) = (0x\w+)", SKELETON, re.M))
    numbers = {name: int(value, 16) for name, value in defines.items()}
    assert numbers.pop("WHO") == mark.CLASS | mark.SOCKET
    assert numbers.pop("KEEP") == 0xFFFFFFFF & ~mark.BYTE
    assert numbers.pop("MINE") == mark.TUN == mine(0)
    assert numbers.pop("ASKED") == tun_render.PROBE | tun_render.PROBE_DNS
    assert numbers == {name: getattr(mark, name) for name in numbers}
    assert not (tun_render.PROBE | tun_render.PROBE_DNS) & (mark.ROUTE | mark.SOCKET)


def test_the_skeleton_of_a_number_and_a_device():
    text = skeleton(SKELETON, 5, "wg-x")
    assert "table inet gateway_tun_5 {" in text
    assert 'define DEVICE = "wg-x"' in text
    assert f"define MINE = {mark.TUN | 5 << 27:#010x}" in text
    with pytest.raises(ValueError, match="interface name"):
        skeleton(SKELETON, 5, 'x"; drop')
    assert len({mine(number) for number in range(tun_render.NUMBERS)}) == tun_render.NUMBERS
    assert all(mine(number) & mark.ROUTE for number in range(tun_render.NUMBERS)), "the reaper deletes its entries"


def test_delivery_is_to_loopback_alone():
    found = rules("deliver")
    assert "tproxy ip to 127.0.0.1:1004 meta mark set meta mark | 0x01000000 accept" in found[1]
    assert "tproxy ip6 to [::1]:1006 meta mark set" in found[2]
    assert found[-1] == "goto refuse", "where nobody listens"
    assert len(rules("deliver", ports={4: 1004})) == 4


def test_the_routes_are_asked_by_a_mark_that_goes_again():
    asked = rules("forwarded")
    assert asked[-3:] == [
        "th dport 53 meta mark set meta mark | 0x04000000",
        'fib daddr . mark oifname "tun0" goto take',
        "meta mark set meta mark & 0xf9ffffff",
    ]
    assert "meta mark & 0x00ffffff != 0 accept" in asked
    assert "meta mark set meta mark & 0xf9ffffff ct mark" in SKELETON, "taken ones lose it too"
    assert rules("forwarded", mode="manual") == ['fib daddr . mark oifname "tun0" goto take']


def test_what_redirect_asks_in_its_order():
    found = {
        chain: rules(
            chain, mode="redirect", exclude_interface=("a",), include_mac=("02:00:00:00:00:01",), uids=("5-9",),
            route=(ip_network("192.0.2.0/24"),), exclude=(ip_network("2001:db8::/32"),), wanted=True, unwanted=True,
            output_mark=0x2024, input_mark=0x2023, dns_port=5300,
        )
        for chain in ("forwarded", "local", "where_from", "who", "where_to", "beyond", "dns", "echo")
    }  # fmt: skip
    assert found["forwarded"] == ["jump where_from", "jump where_to", "jump beyond", "goto take"]
    assert found["local"] == ["jump who", "jump where_to", "jump beyond", "goto take_local"]
    assert found["where_from"] == [
        'iifname { "a" } accept', "meta iiftype != ether accept", "ether saddr != { 02:00:00:00:00:01 } accept",
    ]  # fmt: skip
    assert found["who"] == ["meta mark 0x2024 accept", "meta skuid { 5-9 } accept"]
    assert found["where_to"] == ["ip daddr != { 192.0.2.0/24 } accept", "ip6 daddr { 2001:db8::/32 } accept"]
    assert found["beyond"] == [
        "ip daddr @local4 accept", "ip daddr != @wanted4 accept", "ip daddr @unwanted4 accept",
        "ip6 daddr @local6 accept", "ip6 daddr != @wanted6 accept", "ip6 daddr @unwanted6 accept",
    ]  # fmt: skip
    assert found["dns"][-2].endswith("ip saddr @local4 ct mark set ct mark & 0xf8ffffff | 0x05000000 redirect to :5300")
    assert found["echo"][-1] == "meta mark set 0x2023 accept"


@pytest.mark.parametrize("mode", ["manual", "routes", "redirect"])
def test_what_has_intervals_is_there_before_anything_leads_to_it(mode):
    plan = Tunnel(
        "tun0", mode, (4, 6), PORTS, dns_port=5300, include_mac=("02:00:00:00:00:01",), uids=("5-9",),
        route=(ip_network("192.0.2.0/24"),), exclude=(ip_network("2001:db8::/32"),), wanted=True, unwanted=True,
        loopback=(ip_address("10.7.0.1"),), sets={"local4": ("10.7.0.0/24",)},
    )  # fmt: skip
    before, after = prepare(plan, 5), switch(plan, 5)
    assert "add element inet gateway_tun_5 local4 { 10.7.0.0/24 }" in before
    own = set(re.findall(r"^add chain \S+ \S+ (\w+)$", before, re.M))
    assert set(re.findall(r"^add rule \S+ \S+ (\w+) ", before, re.M)) <= own, "chains of the skeleton stay empty"
    assert "hook" not in before
    assert not re.search(r"\{[^}]*[/-][^}]*\}", re.sub("^add chain.*", "", after, flags=re.M)), after
    assert "add element" not in after


def test_this_host_may_be_left_out():
    for fields in ({"exclude_interface": ("lo",)}, {"include_interface": ("a",)}, {"here": False}):
        assert rules("local", mode="redirect", dns_port=5, **fields) == []
        assert rules("dns_local", mode="redirect", dns_port=5, **fields) == []
        assert rules("device_out", mode="redirect", **fields) == []
    assert rules("local", mode="redirect", include_interface=("lo",))


def test_a_family_without_address():
    assert "meta nfproto ipv6 accept" in rules("forwarded", families=(4,))
    assert "meta nfproto ipv6 accept" in rules("forwarded", mode="redirect", families=(4,))
    assert "meta nfproto ipv6 goto refuse" in rules("forwarded", mode="redirect", families=(4,), strict=True)


def test_loopback_addresses_go_to_the_device():
    here = (ip_address("10.7.0.1"), ip_address("fd07::1"))
    assert rules("device_in", loopback=here)[:2] == [
        'iifname "tun0" ip saddr { 10.7.0.1 } accept', "ip daddr { 10.7.0.1 } accept",
    ]  # fmt: skip
    assert "ip6 daddr { fd07::1 } meta mark set 0x9 accept" in rules(
        "device_out", mode="redirect", loopback=here, input_mark=9
    )


def test_a_change_of_sets_is_a_difference():
    old = {"local4": ("192.0.2.0/24",), "local6": (), "wanted4": ("198.51.100.1",)}
    assert fill(5, old, old) == ""
    found = fill(5, old, {"local4": ("192.0.2.0/24",), "wanted4": ("198.51.100.2", "198.51.100.4-198.51.100.9")})
    assert found.splitlines() == [
        "flush set inet gateway_tun_5 wanted4",
        "add element inet gateway_tun_5 wanted4 { 198.51.100.2, 198.51.100.4-198.51.100.9 }",
    ]
    assert fill(5, old, {"wanted4": ()}) == "flush set inet gateway_tun_5 wanted4\n"
    many = tuple(str(ip_address(n << 8)) for n in range(2500))
    assert len(fill(5, {}, {"local4": many}).splitlines()) == 3
