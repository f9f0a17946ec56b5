"""Reads many conntrack entries fast: those of one shape (the same attributes of the same lengths) by one ``struct``.

The reference is ``conntrack.parse``; this gives the same, three times as fast: a dump of the kernel has a few shapes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from operator import itemgetter
from typing import Any, NamedTuple

from gateway.core.address import IP, Address
from gateway.kernel.conntrack import (
    COUNTED,
    COUNTED_BACK,
    ID,
    MARK,
    ORIGINAL,
    REPLY,
    STATUS,
    TIMEOUT,
    Count,
    Counted,
    Entry,
    dumped,
    parse,
)
from gateway.kernel.nft.message import attributes

SHAPES = 64
"""Shapes remembered; what has another is parsed."""
_HEADER = struct.Struct("=HH")
TYPE = 0x3FFF
ADDRESSES = {(4, 1): "4s", (4, 2): "4s", (16, 3): "16s", (16, 4): "16s"}
PLAIN = {STATUS: "I", TIMEOUT: "I", MARK: "I", ID: "I"}
ENDS = (1, 2, 3)
"""Of CTA_TUPLE_PROTO: protocol, source port, destination port."""
FIELDS = (
    *((kind, "ip", end) for kind in (ORIGINAL, REPLY) for end in (0, 1)),
    *((kind, "protocol", number) for kind in (ORIGINAL, REPLY) for number in ENDS),
    (STATUS,), (TIMEOUT,), (MARK,), (ID,), (COUNTED, 1), (COUNTED, 2), (COUNTED_BACK, 1), (COUNTED_BACK, 2),
)  # fmt: skip
"""What is read, in the order in which ``_Shape`` gives it."""


class _Shape(NamedTuple):
    mask: int
    headers: int
    unpack: Callable[[bytes], tuple[Any, ...]]
    order: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    counted: tuple[bool, bool]


class Reader:
    """Of one dump, or of many."""

    def __init__(self) -> None:
        self._shapes: dict[int, list[_Shape]] = {}
        self._count = 0

    def read(self, data: bytes) -> Counted | None:
        """``data``: the attributes of one entry. As ``parse``; raises ValueError where a length is wrong."""
        number = int.from_bytes(data)
        for shape in self._shapes.get(len(data), ()):
            if number & shape.mask == shape.headers:
                return _made(shape, data)
        if self._count < SHAPES and (found := _shape(data)) is not None:
            self._count += 1
            self._shapes.setdefault(len(data), []).append(found)
        return parse(attributes(data))


def counted(mark: int = 0, mask: int = 0) -> Generator[Counted, None, None]:
    """As ``conntrack.dump``, one after another as they are asked for, with timeout and counters. Raises KernelError."""
    reader = Reader()
    for data in dumped(mark, mask):
        if (found := reader.read(data)) is not None:
            yield found


def _made(shape: _Shape, data: bytes) -> Counted:
    (
        source, destination, back_source, back_destination, protocol, sport, dport, _, back_sport, back_dport, status,
        timeout, mark, number, packets, size, back_packets, back_size,
    ) = shape.order(shape.unpack(data))  # fmt: skip
    there = Address(_ip(source), sport), Address(_ip(destination), dport)
    back = Address(_ip(back_source), back_sport), Address(_ip(back_destination), back_dport)
    up, down = shape.counted
    return Counted(
        Entry(protocol, *there, *back, mark, status),
        timeout,
        Count(packets, size) if up else None,
        Count(back_packets, back_size) if down else None,
        number,
    )


@lru_cache(16384)
def _ip(packed: bytes) -> IP:
    host = Address.of(str(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed)), 0).ip
    assert host is not None
    return host


def _walk(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, start of the header, start and end of the value of each attribute. Raises ValueError."""
    while end - start >= _HEADER.size:
        size, kind = _HEADER.unpack_from(data, start)
        if size < _HEADER.size or start + size > end:
            raise ValueError("netlink attribute length")
        yield kind & TYPE, start, start + _HEADER.size, start + size
        start += (size + 3) & ~3


def _shape(data: bytes) -> _Shape | None:
    """None for what lacks an address."""
    heads: list[int] = []
    places: dict[tuple[Any, ...], tuple[int, str]] = {}
    for kind, head, start, end in _walk(data, 0, len(data)):
        heads.append(head)
        if kind in PLAIN and end - start == 4:
            places[kind,] = start, "I"
        elif kind in (COUNTED, COUNTED_BACK):
            for number, at, first, last in _walk(data, start, end):
                heads.append(at)
                if number in (1, 2) and last - first == 8:
                    places[kind, number] = first, "Q"
        elif kind in (ORIGINAL, REPLY):
            _ends(data, kind, (start, end), heads, places)
    if any((kind, "ip", end) not in places for kind in (ORIGINAL, REPLY) for end in (0, 1)):
        return None
    mask = sum(0xFFFFFFFF << 8 * (len(data) - head - 4) for head in heads)
    known = sorted((place, field) for field, place in places.items() if field in FIELDS)
    form, at = [">"], 0
    for (start, code), _ in known:
        form.append(f"{start - at}x{code}")
        at = start + struct.calcsize(f">{code}")
    unpack = struct.Struct("".join(form)).unpack_from
    position = {field: index for index, (_, field) in enumerate(known)}
    # What is missing is 0: it stands behind the others.
    order = itemgetter(*(position.get(field, len(known)) for field in FIELDS))
    counted = ((COUNTED, 1) in places, (COUNTED_BACK, 1) in places)
    return _Shape(mask, int.from_bytes(data) & mask, unpack, lambda values: order((*values, 0)), counted)


def _ends(
    data: bytes, kind: int, within: tuple[int, int], heads: list[int], places: dict[tuple[Any, ...], tuple[int, str]]
) -> None:  # fmt: skip
    for part, head, start, end in _walk(data, *within):
        heads.append(head)
        if part == 1:
            for number, at, first, last in _walk(data, start, end):
                heads.append(at)
                if (last - first, number) in ADDRESSES:
                    places[kind, "ip", (number - 1) % 2] = first, ADDRESSES[last - first, number]
        elif part == 2:
            for number, at, first, last in _walk(data, start, end):
                heads.append(at)
                if number in ENDS and last - first == (1 if number == 1 else 2):
                    places[kind, "protocol", number] = first, "B" if number == 1 else "H"
