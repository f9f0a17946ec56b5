"""Steps from what is there to what is wanted: only ours is touched, nothing twice, and the end is what was wanted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel import mark
from gateway.kernel.netlink import diff
from gateway.kernel.netlink.diff import DHCP, Address, Route, Rule, Step

protos = st.sampled_from([0, 2, 3, 4, DHCP, mark.PROTO])
four = st.integers(1, 6).map(lambda n: ip_address(f"192.0.2.{n}"))
six = st.integers(1, 6).map(lambda n: ip_address(f"2001:db8::{n}"))
addresses = st.builds(
    Address,
    st.just("wan"),
    st.integers(1, 6).map(lambda n: ip_address(f"192.0.2.{n}"))
    | st.integers(1, 6).map(lambda n: ip_address(f"2001:db8::{n}")),
    st.sampled_from([24, 25]),
    st.none() | st.integers(1, 4000),
    st.none() | st.integers(1, 4000),
    protos,
)
routes = st.builds(
    Route,
    st.just("wan"),
    st.sampled_from([ip_network(n) for n in ("0.0.0.0/0", "198.51.100.0/24", "203.0.113.0/25")]),
    st.none() | st.integers(1, 3).map(lambda n: ip_address(f"192.0.2.{n}")),
    st.sampled_from([0, 100]),
    st.just(254),
    protos,
)


def unique(items):
    return list({item.key: item for item in items}.values())


def apply(have, steps):
    table = {(item.key, item.proto): item for item in have}
    for step in steps:
        if step.op == "delete":
            del table[step.item.key, step.item.proto]
        else:
            for key in [key for key in table if key[0] == step.item.key and (key[1] in diff.OURS or step.op == "set")]:
                del table[key]
            table[step.item.key, step.item.proto] = step.item
    return list(table.values())


@given(st.lists(addresses, max_size=6).map(unique), st.lists(addresses, max_size=4).map(unique))
def test_addresses_converge(have: list[Address], want: list[Address]) -> None:
    want = [replace(item, proto=mark.PROTO) for item in want]
    steps = diff.addresses(have, want)
    after = apply(have, steps)
    assert not diff.addresses(after, want)
    assert {item.key for item in want} <= {item.key for item in after}
    foreign = [item for item in have if item.proto != mark.PROTO and item.key not in {w.key for w in want}]
    assert all(item in after for item in foreign)
    ops = [step.op for step in steps]
    assert ops == sorted(ops, key=lambda op: op == "delete")
    assert all((step.inverse is None) == (step.op == "delete") for step in steps)


@given(st.lists(routes, max_size=6).map(unique), st.lists(routes, max_size=4).map(unique))
def test_routes_converge(have: list[Route], want: list[Route]) -> None:
    want = [replace(item, proto=DHCP) for item in want]
    after = apply(have, diff.routes(have, want))
    assert not diff.routes(after, want)
    assert all(item in after for item in have if item.proto not in diff.OURS)


def test_lifetimes_are_refreshed_in_place() -> None:
    old = Address("wan", ip_address("192.0.2.9"), 24, 100, 100)
    new = replace(old, valid=3600, preferred=3600)
    (step,) = diff.addresses([old], [new])
    assert (step.op, step.item) == ("set", new)
    assert not diff.addresses([replace(new, valid=3599, preferred=3598)], [new])
    assert diff.addresses([replace(new, valid=None)], [new])


def test_a_foreign_address_is_taken_over_with_its_values_kept() -> None:
    old = Address("wan", ip_address("192.0.2.9"), 24, 77, 66, proto=0)
    (step,) = diff.addresses([old], [replace(old, valid=3600, preferred=3600, proto=mark.PROTO)])
    assert step.inverse == {
        "kind": "address", "op": "set", "interface": "wan", "address": "192.0.2.9/24", "valid": 77, "preferred": 66,
        "proto": 0,
    }  # fmt: skip


def test_route_order() -> None:
    """The host route to an off-link gateway comes before the default route through it."""
    gateway = ip_address("203.0.113.1")
    host = Route("wan", ip_network("203.0.113.1/32"))
    default = Route("wan", ip_network("0.0.0.0/0"), gateway)
    assert [step.item for step in diff.routes([], [default, host])] == [host, default]


def test_ipv6_metric() -> None:
    want = Route("wan", ip_network("::/0"), ip_address("2001:db8::1"))
    assert not diff.routes([replace(want, metric=1024)], [want])


def test_rules() -> None:
    _, want = diff.steering()
    assert [rule.family for rule in want] == [4, 6]
    foreign = Rule(4, 100, 1, 1, 100, proto=0)
    assert [step.op for step in diff.rules([foreign], want)] == ["add", "add"]
    assert not diff.rules([foreign, *want], want)
    assert diff.rules([foreign, *want], ()) == [Step("delete", rule) for rule in want]
