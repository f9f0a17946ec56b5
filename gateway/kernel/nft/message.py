"""Framing of nfnetlink: messages, attributes, answers. Pure.

linux/netlink.h, linux/netfilter/nfnetlink.h. Integers of the header are in host order, those of attributes in network
order. Neither sockets nor the meaning of any attribute.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

REQUEST, ACK, CREATE, DUMP = 0x001, 0x004, 0x400, 0x300
NESTED = 0x8000
ERROR, DONE = 2, 3
BATCH_BEGIN, BATCH_END = 16, 17
NETLINK_NETFILTER = 12
"""The netlink protocol."""
NFTABLES = 10
CONNTRACK = 1

_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("!BBH")


class Answer(NamedTuple):
    """One message of the kernel. ``errno`` is 0 for an acknowledgement, None where the message is not an answer."""

    kind: int
    sequence: int
    errno: int | None
    payload: bytes


def message(kind: int, flags: int, sequence: int, family: int, payload: bytes = b"", resource: int = 0) -> bytes:
    body = _FAMILY.pack(family, 0, resource) + payload
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    """Raises ValueError where the value does not fit the 16-bit length."""
    size = 4 + len(value)
    if size > 0xFFFF:
        raise ValueError(f"netlink attribute of {size} bytes")
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(parts))


def string(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value))


def u64(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!Q", value))


def answers(data: bytes) -> Iterator[Answer]:
    """Messages of one datagram. Raises ValueError where a length is wrong."""
    offset = 0
    while len(data) - offset >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise ValueError("netlink message length")
        payload = data[offset + _HEADER.size : offset + length]
        errno = None
        if kind in (ERROR, DONE):
            errno = -int.from_bytes(payload[:4], sys.byteorder, signed=True) if len(payload) >= 4 else 0
        yield Answer(kind, sequence, errno, payload)
        offset += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by number; of a repeated one the last. Raises ValueError where a length is wrong."""
    return dict(pairs(data))


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Attributes in their order, with their numbers. Raises ValueError where a length is wrong."""
    offset = 0
    while len(data) - offset >= 4:
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            raise ValueError("netlink attribute length")
        yield kind & 0x3FFF, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3
