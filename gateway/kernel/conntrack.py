"""Connection tracking entries of this network namespace: dump and delete, by mark or by tuple.

ctnetlink, linux/netfilter/nfnetlink_conntrack.h. Each call opens its own socket and blocks for as long as the kernel
takes. Raises KernelError.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Literal, NamedTuple

from gateway.core.address import Address
from gateway.core.errors import KernelError
from gateway.kernel import mark as marks
from gateway.kernel.nft.message import (
    ACK,
    CONNTRACK,
    DONE,
    DUMP,
    ERROR,
    NETLINK_NETFILTER,
    REQUEST,
    Answer,
    answers,
    attribute,
    attributes,
    message,
    nested,
    u32,
)

NEW, GET, DELETE = (CONNTRACK << 8 | number for number in (0, 1, 2))
ORIGINAL, REPLY, STATUS, TIMEOUT, MARK, COUNTED, COUNTED_BACK, ID, MASK = 1, 2, 3, 7, 8, 9, 10, 12, 21
PROTOCOLS = {"tcp": 6, "udp": 17}


class Entry(NamedTuple):
    """One flow: both directions as (source, destination), protocol number, mark, status bits (IPS_*). Ports are 0 for
    protocols without."""

    protocol: int
    source: Address
    destination: Address
    reply_source: Address
    reply_destination: Address
    mark: int
    status: int


class Count(NamedTuple):
    """Bytes from the IP header on. A packet that the kernel holds as one counts as one (GSO, up to 64 KB)."""

    packets: int
    bytes: int

    def plus(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)


NOTHING = Count(0, 0)


class Counted(NamedTuple):
    """A flow with the seconds that it may be silent, and what was counted of each direction: None where conntrack did
    not count when it began. ``number``: the kernel's for the entry, a hash of 32 bits that a later one may have too."""

    entry: Entry
    timeout: int
    up: Count | None
    down: Count | None
    number: int = 0
    short_up: Count = NOTHING
    short_down: Count = NOTHING
    """What went the short way of flow offload, which conntrack has not seen."""

    @property
    def sent(self) -> Count | None:
        return self.up.plus(self.short_up) if self.up is not None else None

    @property
    def received(self) -> Count | None:
        return self.down.plus(self.short_down) if self.down is not None else None

    @property
    def key(self) -> tuple[int, int, int]:
        """What tells it from the others that run."""
        return self.number, self.entry.source.port, self.entry.destination.port


def delete_request(mark: int, mask: int, family: int = socket.AF_UNSPEC) -> bytes:
    """The datagram that deletes every entry with ``entry.mark & mask == mark``."""
    return message(DELETE, REQUEST | ACK, 1, family, u32(MARK, mark) + u32(MASK, mask))


USERSPACE = delete_request(marks.ROUTE, marks.ROUTE)
"""Deletes what is left of flows that were delivered to userspace."""


def delete_marked(mark: int, mask: int) -> None:
    """Delete every entry with ``entry.mark & mask == mark``; none is success."""
    _ask(delete_request(mark, mask), "conntrack delete by mark")


def delete_userspace() -> None:
    """Delete the entries of flows that were delivered to userspace: they have no NAT."""
    _ask(USERSPACE, "conntrack delete by mark")


def delete_flow(network: Literal["tcp", "udp"], source: Address, destination: Address) -> bool:
    """Delete one flow by its original direction; False if there was none. Raises ValueError without addresses."""
    here, there = source.ip, destination.ip
    if here is None or there is None:
        raise ValueError("a flow has addresses, not names")
    if here.version != there.version:
        raise ValueError("addresses of two families")
    first, second = (1, 2) if here.version == 4 else (3, 4)
    addresses = nested(1, attribute(first, here.packed), attribute(second, there.packed))
    ports = attribute(2, struct.pack("!H", source.port)) + attribute(3, struct.pack("!H", destination.port))
    protocol = nested(2, attribute(1, bytes((PROTOCOLS[network],))), ports)
    family = socket.AF_INET if here.version == 4 else socket.AF_INET6
    try:
        _ask(message(DELETE, REQUEST | ACK, 1, family, nested(ORIGINAL, addresses, protocol)), "conntrack delete")
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def dump(mark: int = 0, mask: int = 0) -> list[Entry]:
    """Entries with ``entry.mark & mask == mark``, both families; all of them where ``mask`` is 0."""
    return [entry for found in dumped(mark, mask) if (entry := _entry(attributes(found))) is not None]


def parse(found: dict[int, bytes]) -> Counted | None:
    """One flow of its attributes; None for what has no addresses."""
    entry = _entry(found)
    if entry is None:
        return None
    return Counted(
        entry, _number(found, TIMEOUT), _count(found, COUNTED), _count(found, COUNTED_BACK), _number(found, ID)
    )


def dumped(mark: int, mask: int) -> Iterator[bytes]:
    """The attributes of each such entry, as they come."""
    wanted = u32(MARK, mark) + u32(MASK, mask) if mask else b""
    for answer in _talk(message(GET, REQUEST | DUMP, 1, socket.AF_UNSPEC, wanted), "conntrack dump"):
        if answer.kind == NEW:
            yield answer.payload[4:]


def _count(found: dict[int, bytes], kind: int) -> Count | None:
    if kind not in found:
        return None
    counters = attributes(found[kind])
    return Count(_number(counters, 1), _number(counters, 2))


def _entry(found: dict[int, bytes]) -> Entry | None:
    protocol, source, destination = _tuple(found.get(ORIGINAL, b""))
    _, reply_source, reply_destination = _tuple(found.get(REPLY, b""))
    if source is None or destination is None or reply_source is None or reply_destination is None:
        return None
    return Entry(
        protocol, source, destination, reply_source, reply_destination, _number(found, MARK), _number(found, STATUS)
    )


def _tuple(data: bytes) -> tuple[int, Address | None, Address | None]:
    parts = attributes(data)
    addresses, protocol = attributes(parts.get(1, b"")), attributes(parts.get(2, b""))
    source = addresses.get(1) or addresses.get(3)
    destination = addresses.get(2) or addresses.get(4)
    if source is None or destination is None:
        return 0, None, None
    return _number(protocol, 1), _place(source, _number(protocol, 2)), _place(destination, _number(protocol, 3))


def _place(packed: bytes, port: int) -> Address:
    return Address.of(IPv4Address(packed) if len(packed) == 4 else IPv6Address(packed), port)


def _number(found: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(found.get(kind, b""), "big")


def _ask(request: bytes, op: str) -> None:
    for _ in _talk(request, op):
        pass


def _talk(request: bytes, op: str) -> Iterator[Answer]:
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as sock:
            sock.settimeout(10)
            sock.bind((0, 0))
            sock.send(request)
            while True:
                for answer in answers(sock.recv(1 << 18)):
                    if answer.kind in (ERROR, DONE):
                        if answer.errno:
                            raise KernelError(op, answer.errno)
                        return
                    yield answer
    except TimeoutError as error:
        raise KernelError(op, errno.ETIMEDOUT) from error
    except OSError as error:
        raise KernelError(op, error.errno or 0) from error
