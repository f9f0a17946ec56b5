"""A flow as the kernel tells it, with its counters and without."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from gateway.core.address import Address
from gateway.kernel.conntrack import COUNTED, COUNTED_BACK, MARK, ORIGINAL, REPLY, TIMEOUT, Count, parse
from gateway.kernel.nft.message import attribute, attributes, nested, u32, u64

CLIENT, SITE = "192.168.7.2", "203.0.113.2"


def ends(kind: int, source: str, port: int, destination: str, to: int) -> bytes:
    here, there = ip_address(source), ip_address(destination)
    first = 1 if here.version == 4 else 3
    ports = (attribute(number, struct.pack("!H", value)) for number, value in ((2, port), (3, to)))
    addresses = nested(1, attribute(first, here.packed), attribute(first + 1, there.packed))
    return nested(kind, addresses, nested(2, attribute(1, b"\x06"), *ports))


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
