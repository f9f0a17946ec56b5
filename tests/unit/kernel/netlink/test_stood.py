"""What stood, as rtnetlink said it: what counts as the same, and how it is written again."""

from __future__ import annotations

import struct
from pathlib import Path

from gateway.kernel.netlink import stood
from gateway.kernel.netlink.stood import (
    FOREVER,
    IFA_ADDRESS,
    IFA_CACHEINFO,
    IFA_FLAGS,
    IFA_LOCAL,
    IFA_PROTO,
    NEW_ADDRESS,
    NEW_ROUTE,
    NEW_RULE,
    PERMANENT,
    RTA_CACHEINFO,
    RTA_EXPIRES,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_NH_ID,
    RTA_OIF,
    Message,
    attributes,
    clean,
    identity,
)

FOUR = bytes((192, 0, 2, 1))


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def address(valid: int, preferred: int, local: bytes = FOUR, flags: int = 0) -> Message:
    head = struct.pack("=BBBBI", 2, 24, flags, 0, 3)
    cache = struct.pack("=4I", preferred, valid, 7, 9)
    parts = attribute(IFA_ADDRESS, local), attribute(IFA_LOCAL, local), attribute(IFA_CACHEINFO, cache)
    return Message(NEW_ADDRESS, head + b"".join(parts))


def route(flags: int, *parts: bytes, family: int = 2) -> Message:
    return Message(NEW_ROUTE, struct.pack("=8BI", family, 24, 0, 0, 254, 4, 0, 1, flags) + b"".join(parts))


def test_an_address_is_the_same_whatever_its_lifetime() -> None:
    assert identity(address(100, 50)) == identity(address(FOREVER, FOREVER, flags=0x80))
    assert identity(address(100, 50)) != identity(address(100, 50, bytes((192, 0, 2, 2))))


def test_lifetimes_are_what_is_left() -> None:
    for before, elapsed, after in ((100, 30.5, 70), (20, 30.0, 1), (FOREVER, 30.0, FOREVER), (0, 30.0, 0)):
        body = clean(address(before, before), elapsed)
        found = dict(attributes(body[8:]))[IFA_CACHEINFO]
        assert struct.unpack("=4I", found) == (after, after, 7, 9)


def test_a_route_loses_what_says_how_it_is() -> None:
    hop = struct.pack("=HBBi", 16, 0x1 | 0x4 | 0x10, 0, 3) + attribute(RTA_GATEWAY, FOUR)
    clear = struct.pack("=HBBi", 16, 0x4, 0, 3) + attribute(RTA_GATEWAY, FOUR)
    dead = route(0x1 | 0x4 | 0x10, attribute(RTA_MULTIPATH, hop + hop))
    assert clean(dead, 0.0) == route(0x4, attribute(RTA_MULTIPATH, clear + clear)).body
    assert identity(dead) == identity(route(0x4, attribute(RTA_MULTIPATH, clear + clear)))


def test_a_route_that_ends_goes_on_to_end() -> None:
    cache = struct.pack("=3Ii4I", 0, 0, 0, 3000, 0, 0, 0, 0)
    one = route(0, attribute(RTA_CACHEINFO, cache), attribute(RTA_OIF, b"\3\0\0\0"), family=10)
    assert dict(attributes(clean(one, 12.0)[12:]))[RTA_EXPIRES] == struct.pack("=I", 18)
    assert identity(one) == identity(route(0, attribute(RTA_OIF, b"\3\0\0\0"), family=10))


def test_of_a_nexthop_object_its_number_alone_is_written() -> None:
    one = route(0, attribute(RTA_NH_ID, b"\7\0\0\0"), attribute(RTA_GATEWAY, FOUR), attribute(RTA_OIF, b"\3\0\0\0"))
    assert clean(one, 0.0) == route(0, attribute(RTA_NH_ID, b"\7\0\0\0")).body


def test_a_rule_keeps_its_not() -> None:
    head = struct.pack("=8B", 2, 0, 0, 0, 254, 0, 0, 1)
    shown = Message(NEW_RULE, head + struct.pack("=I", 0x2 | 0x8) + attribute(6, b"\1\0\0\0"))
    assert clean(shown, 0.0) == head + struct.pack("=I", 0x2) + attribute(6, b"\1\0\0\0")


def test_what_router_advertisements_have_made() -> None:
    """Addresses and routes of IPv6 that they brought, by their interface; no others."""
    out, ends = (
        attribute(RTA_OIF, b"\3\0\0\0"),
        attribute(RTA_CACHEINFO, struct.pack("=3Ii4I", 0, 0, 0, 3000, 0, 0, 0, 0)),
    )

    def six(protocol: int, *parts: bytes) -> Message:
        return Message(NEW_ROUTE, struct.pack("=8BI", 10, 64, 0, 0, 254, protocol, 0, 1, 0) + b"".join(parts))

    def inside(flags: int, *parts: bytes) -> Message:
        head = struct.pack("=BBBBI", 10, 64, 0, 0, 3) + attribute(IFA_ADDRESS, bytes(16))
        return Message(NEW_ADDRESS, head + attribute(IFA_FLAGS, struct.pack("=I", flags)) + b"".join(parts))

    def announced(message: Message) -> int:
        return stood._announced(message)

    assert [announced(one) for one in (six(9, out), six(2, out, ends))] == [3, 3]
    assert [announced(one) for one in (six(2, out), six(3, out, ends), route(0, out, ends))] == [0, 0, 0]
    assert announced(inside(0)) == 3
    assert announced(inside(PERMANENT, attribute(IFA_PROTO, b"\2"))) == 3
    assert announced(inside(PERMANENT, attribute(IFA_PROTO, b"\3"))) == 0
    assert announced(address(100, 50)) == 0


def test_attributes_end_where_a_length_is_wrong() -> None:
    assert list(attributes(attribute(1, b"ab") + b"\1\0\2\0" + attribute(3, b""))) == [(1, b"ab")]
    assert list(attributes(b"\x40\0\1\0ab")) == []


def test_what_stands_here_is_all_there(tmp_path: Path) -> None:
    """Dumps of the host that runs this: nothing of it is missing, so nothing is written."""
    stood.save(tmp_path / "network.json")
    at, found = stood.load(tmp_path / "network.json")
    assert stood.boottime() >= at
    assert {one.kind for one in found} >= {NEW_ADDRESS, NEW_RULE}
    now = {identity(one) for one in stood.take()}
    assert all(identity(one) in now for one in found)
