"""A flow as the kernel tells it, with its counters and without."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from gateway.core.address import Address
from gateway.kernel.conntrack import COUNTED, COUNTED_BACK, ID, MARK, ORIGINAL, REPLY, STATUS, TIMEOUT, Count, parse
from gateway.kernel.nft.message import attribute, attributes, nested, u32, u64
from gateway.kernel.shape import SHAPES, Reader

CLIENT, SITE = "192.168.7.2", "203.0.113.2"


def ends(kind: int, source: str, port: int, destination: str, to: int, protocol: bytes = b"\x06") -> bytes:
    here, there = ip_address(source), ip_address(destination)
    first = 1 if here.version == 4 else 3
    ports = (attribute(number, struct.pack("!H", value)) for number, value in ((2, port), (3, to)))
    addresses = nested(1, attribute(first, here.packed), attribute(first + 1, there.packed))
    return nested(kind, addresses, nested(2, attribute(1, protocol), *ports))


@pytest.mark.parametrize(("client", "site"), [(CLIENT, SITE), ("2001:db8:1::2", "2001:db8:3::2")])
def test_counters_are_64_bits_of_each_direction(client: str, site: str) -> None:
    both = ends(ORIGINAL, client, 40000, site, 443) + ends(REPLY, site, 443, client, 40000)
    up = nested(COUNTED, u64(1, 7), u64(2, 5 << 32))
    down = nested(COUNTED_BACK, u64(1, 9), u64(2, 1500))
    found = parse(attributes(both + u32(MARK, 0x02000000) + u32(TIMEOUT, 431999) + up + down))
    assert found is not None
    assert (found.entry.source, found.entry.destination) == (Address.of(client, 40000), Address.of(site, 443))
    assert (found.entry.protocol, found.entry.mark, found.timeout) == (6, 0x02000000, 431999)
    assert (found.up, found.down) == (Count(7, 5 << 32), Count(9, 1500))


def test_without_accounting_there_are_none() -> None:
    found = parse(attributes(ends(ORIGINAL, CLIENT, 1, SITE, 2) + ends(REPLY, SITE, 2, CLIENT, 1)))
    assert found is not None
    assert (found.up, found.down) == (None, None)
    assert parse({}) is None


def message(number: int, *, six: bool, counted: bool, extra: bytes = b"", order: int = 1) -> bytes:
    client, site = ("2001:db8:1::2", "2001:db8:3::2") if six else (CLIENT, SITE)
    client = client[:-1] + str(number % 7 + 1)
    parts = [
        ends(ORIGINAL, client, 1024 + number, site, 443, bytes((number % 256,))),
        ends(REPLY, site, 443, client, 1024 + number, bytes((number % 256,))),
        u32(STATUS, 0x18E), u32(TIMEOUT, number), extra,
        nested(COUNTED, u64(1, number), u64(2, number << 33)) if counted else b"",
        nested(COUNTED_BACK, u64(1, 9), u64(2, 1500)) if counted else b"",
        u32(MARK, 0x02000000 + number), u32(ID, number * 7919),
    ]  # fmt: skip
    return b"".join(parts[::order])


def test_the_fast_reader_says_what_the_other_says() -> None:
    """Whatever the order, the family, the attributes that nobody asks for."""
    reader = Reader()
    extra = [b"", nested(4, nested(1, attribute(1, b"\x03"))), nested(20, u64(1, 77))]
    for number in range(2000):
        six, counted, order = number % 2 == 0, number % 3 != 0, -1 if number % 5 == 0 else 1
        data = message(number, six=six, counted=counted, extra=extra[number % 3], order=order)
        assert reader.read(data) == parse(attributes(data))
    icmp = nested(2, attribute(1, b"\x01"), attribute(4, b"\x00\x01"), attribute(5, b"\x08"), attribute(6, b"\x00"))
    addresses = [nested(1, attribute(1, b"\x0a\0\0\1"), attribute(2, last)) for last in (b"\x0a\0\0\2", b"\x0a\0\0\3")]
    for address in addresses * 3:
        data = nested(ORIGINAL, address, icmp) + nested(REPLY, address, icmp)
        found = reader.read(data)
        assert found == parse(attributes(data))
        assert found is not None
        assert (found.entry.protocol, found.entry.source.port) == (1, 0)


def test_the_fast_reader_is_told_of_shapes_by_their_headers_alone() -> None:
    """Of one length, but an attribute is another one."""
    reader = Reader()
    one = message(1, six=False, counted=True)
    other = one.replace(u32(TIMEOUT, 1), u32(ID + 1, 1))
    assert len(one) == len(other)
    for data in (one, other, one, other):
        assert reader.read(data) == parse(attributes(data))
    assert reader.read(b"") is None
    with pytest.raises(ValueError, match="length"):
        reader.read(one[:-1])
    for number in range(2 * SHAPES):  # more than are remembered
        data = message(1, six=False, counted=True, extra=attribute(30, bytes(4 * number)))
        assert reader.read(data) == parse(attributes(data))
