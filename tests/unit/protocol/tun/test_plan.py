"""Routes and ip rules of a tun inbound: prefixes less others, the order of the rules, what each option adds."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel import mark
from gateway.protocol.tun import plan
from gateway.route.options import parse_headless

from .test_options import options

SMALL = st.lists(st.tuples(st.integers(0, 63), st.integers(0, 63)).map(lambda two: (min(two), max(two))), max_size=6)


@given(SMALL, SMALL)
def test_minus(ranges, without):
    left = plan.minus(ranges, without)

    def inside(some):
        return {n for first, last in some for n in range(first, last + 1)}

    assert inside(left) == inside(ranges) - inside(without)
    assert all(one[1] < two[0] for one, two in pairwise(left))


@given(st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(0, 32)), max_size=5))
def test_everything_but(excluded):
    """What is left and what was taken away is everything, and no address is in both."""
    nets = [ip_network((ip, length), strict=False) for ip, length in excluded]
    found = plan.routed(
        options(address="172.19.0.1/30", auto_route=True, route_exclude_address=list(map(str, nets))), {}
    )
    assert not any(one.overlaps(other) for one in found for other in nets)
    gone = plan.minus([(0, (1 << 32) - 1)], [plan.span(net) for net in found])
    assert gone == plan.merged(map(plan.span, nets))


def test_routes():
    found = plan.routed(options(auto_route=True, route_exclude_address=["128.0.0.0/1", "::/2"]), {})
    assert list(map(str, found)) == ["0.0.0.0/1", "4000::/2", "8000::/1"]
    found = plan.routed(options(auto_route=True, route_address=["192.0.2.0/25"], address="172.19.0.1/30"), {})
    assert list(map(str, found)) == ["192.0.2.0/25"]
    # With auto_redirect the table of nft has chosen what is led there.
    found = plan.routed(options(auto_route=True, auto_redirect=True, route_exclude_address=["128.0.0.0/1"]), {})
    assert list(map(str, found)) == ["0.0.0.0/0", "::/0"]
    assert plan.routes(options(), "t", 3, {})[0].table == mark.TUN_TABLE + 3
    assert all(route.type == "local" for route in plan.routes(options(), "t", 3, {}))


def test_addresses_of_rule_sets():
    """Those of all rules, logical ones too, but no source addresses and no names."""
    rules = [
        {"ip_cidr": ["192.0.2.0/24"], "source_ip_cidr": ["203.0.113.0/24"]},
        {"domain": ["x.example"]},
        {"type": "logical", "mode": "or", "rules": [{"ip_cidr": "2001:db8::/32"}, {"ip_cidr": "192.0.3.0/24"}]},
    ]
    sets = {"some": tuple(parse_headless(rule, "") for rule in rules)}
    found = plan.addresses_of(["some"], sets)
    assert plan.prefixes(4, found.ranges4) == (ip_network("192.0.2.0/23"),)
    assert plan.prefixes(6, found.ranges6) == (ip_network("2001:db8::/32"),)
    tun = options(auto_route=True, route_address_set="some", route_exclude_address=["192.0.2.0/24"])
    assert list(map(str, plan.routed(tun, sets))) == ["192.0.3.0/24", "2001:db8::/32"]
    elements = plan.set_elements(options(auto_route=True, auto_redirect=True, route_exclude_address_set="some"), sets)
    assert elements["wanted4"] == ()
    assert elements["unwanted4"] == ("192.0.2.0-192.0.3.255",)


def test_users():
    assert plan.users(options(exclude_uid=[3], exclude_uid_range=["5:9", "8:12"])) == ((3, 3), (5, 12))
    assert plan.users(options(include_uid=[0, 7], exclude_uid=7)) == ((1, 0xFFFFFFFE),)
    assert plan.users(options()) == ()


def test_local_networks_do_not_overlap():
    nets = [
        ip_network(text) for text in ("192.168.0.0/16", "192.168.7.0/24", "127.0.0.0/8", "2001:db8::/64", "::1/128")
    ]
    assert plan.local_elements(nets) == {
        "local4": ("127.0.0.0/8", "192.168.0.0/16"), "local6": ("::1/128", "2001:db8::/64"),
    }  # fmt: skip


def shown(rule) -> str:
    """As ip-rule(8) writes it, without priority and protocol."""
    words = ["not"] * rule.invert
    words += [f"from {rule.source}"] * bool(rule.source) + [f"to {rule.destination}"] * bool(rule.destination)
    words += [f"fwmark {rule.mark:#x}/{rule.mask:#x}"] * bool(rule.mask) + [f"iif {rule.iif}"] * bool(rule.iif)
    words += [f"oif {rule.oif}"] * bool(rule.oif) + [f"uidrange {rule.uids}"] * bool(rule.uids)
    words += [f"dport {rule.port}"] * bool(rule.port)
    words.append({"lookup": f"lookup {rule.table}", "goto": f"goto {rule.target}"}.get(rule.action, rule.action))
    words += [f"suppress_prefixlength {rule.suppress}"] * (rule.suppress >= 0)
    return " ".join(words)


def rules(family, local=True, **fields):
    return [rule for rule in plan.rules(options(**fields), "tun0", 2, local) if rule.family == family]


PROBES = [
    "fwmark 0x1000000/0x1000000 lookup 2383",
    "fwmark 0xf8000000/0xf8000000 goto 9031",
    "fwmark 0x2000000/0x6000000 lookup 254 suppress_prefixlength 0",
    "fwmark 0x2000000/0x2000000 lookup 2022",
    "fwmark 0x2000000/0x2000000 goto 9031",
]


def test_rules_of_auto_route():
    assert list(map(shown, rules(4, auto_route=True, exclude_uid_range="5:9", exclude_interface=["a", "b"]))) == [
        *PROBES,
        "iif lo uidrange 5-9 goto 9031",
        "iif a goto 9031",
        "iif b goto 9031",
        "to 172.19.0.0/30 lookup 2022",
        "not dport 53 lookup 254 suppress_prefixlength 0",
        "iif tun0 goto 9031",
        "from 172.19.0.0/30 iif lo lookup 2022",
        "from 0.0.0.0/32 iif lo lookup 2022",
        "not iif lo lookup 2022",
        "nop",
    ]


def test_rules_of_included_interfaces_and_ipv6():
    found = rules(6, auto_route=True, include_interface=["a", "b"])
    assert list(map(shown, found)) == [
        *PROBES,
        "iif a goto 9007",
        "iif b goto 9007",
        "goto 9031",
        "nop",
        "to fdfe:dcba:9876::/126 lookup 2022",
        "not dport 53 lookup 254 suppress_prefixlength 0",
        "iif tun0 goto 9031",
        "from fdfe:dcba:9876::/126 iif lo lookup 2022",
        "from ::/1 iif lo goto 9031",
        "from 8000::/1 iif lo goto 9031",
        "iif lo lookup 2022",
        "not iif lo lookup 2022",
        "nop",
    ]
    assert next(rule.priority for rule in found if shown(rule) == "nop") == 9007


def test_routes_that_were_asked_for_come_before_the_hosts_own():
    found = list(map(shown, rules(4, auto_route=True, route_address="192.0.2.0/24")))
    at = found.index("lookup 2022 suppress_prefixlength 0")
    assert found[at + 1] == "not dport 53 lookup 254 suppress_prefixlength 0"
    at = found.index("fwmark 0x2000000/0x2000000 lookup 2022 suppress_prefixlength 0")
    assert found[at + 1] == "fwmark 0x2000000/0x6000000 lookup 254 suppress_prefixlength 0"


def test_other_rules():
    deliver = "fwmark 0x1000000/0x1000000 lookup 2383"
    strict = {"auto_route": True, "strict_route": True, "address": "172.19.0.1/30"}
    past = "fwmark 0x1000000/0x1000000 goto 9031"
    assert list(map(shown, rules(6, **strict))) == [past, PROBES[1], "unreachable", "nop"]
    assert list(map(shown, rules(6, auto_route=True, address="172.19.0.1/30"))) == []
    assert list(map(shown, rules(4))) == [deliver]
    assert list(map(shown, rules(6))) == [deliver, "oif tun0 lookup 2022"]
    assert list(map(shown, rules(4, auto_route=True, auto_redirect=True))) == [
        deliver, "fwmark 0x2024/0xffffffff goto 9031", "fwmark 0x2023/0xffffffff lookup 2022", "nop",
    ]  # fmt: skip
    assert "iif lo goto 9031" in map(shown, rules(4, local=False, auto_route=True))


@pytest.mark.parametrize("fields", [{}, {"auto_redirect": True}, {"include_interface": list("abcdefgh")}])
def test_priorities_are_those_of_the_inbound(fields):
    tun = options(auto_route=True, iproute2_rule_index=7000, **fields)
    found = plan.rules(tun, "tun0", 0)
    assert {rule.priority for rule in found} <= set(plan.priorities(tun))
    assert all(rule.proto == mark.TUN_PROTO for rule in found)
    assert all(rule.target in {other.priority for other in found} for rule in found if rule.action == "goto")
    assert ip_address("172.19.0.1") in {address.ip for address in plan.own(tun, "tun0")}
