"""The DHCPv4 message, its options, and the IPv4 and UDP headers around it, both directions. Pure.

Follows RFC 2131 section 2 (fixed part), RFC 2132 (options), RFC 3396 (options split over several instances), RFC 3397
(search list), RFC 3442 (classless routes). It judges form only; what a message means is ``machine``'s and ``lease``'s::

    op htype hlen hops | xid(4) | secs(2) flags(2) | ciaddr yiaddr siaddr giaddr (4 each)
    chaddr(16) | sname(64) | file(128) | cookie 63 82 53 63 | options: code length data ... 255

Only ``decode`` and ``unwrap`` raise, and only PeerError: the packet is to be dropped. The option readers return None
for an option that is not usable, so one bad option never costs the others.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from gateway.core.errors import LocalError, PeerError
from gateway.core.wire import checksum

FIXED = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s")
COOKIE = b"\x63\x82\x53\x63"
MIN_SIZE = 300
"""BOOTP's minimum (RFC 1542 section 2.1); some relays drop what is shorter."""
CLIENT_PORT = 68
SERVER_PORT = 67
BROADCAST_FLAG = 0x8000
ANY = IPv4Address(0)


class Type(IntEnum):
    """Option 53."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """Option codes that this client sends or reads."""

    MASK = 1
    ROUTER = 3
    DNS = 6
    HOSTNAME = 12
    DOMAIN = 15
    MTU = 26
    STATIC_ROUTE = 33
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_ID = 54
    PARAMETERS = 55
    MAX_SIZE = 57
    T1 = 58
    T2 = 59
    VENDOR_CLASS = 60
    CLIENT_ID = 61
    SEARCH = 119
    CLASSLESS_ROUTE = 121
    CLASSLESS_ROUTE_MS = 249


class Route(NamedTuple):
    """``gateway`` None: the destination is on the link."""

    destination: IPv4Network
    gateway: IPv4Address | None


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``hardware`` is chaddr cut to hlen (at most 16 bytes). ``options`` are whole (RFC 3396: pieces are
    joined), in the order of their first piece, without pad, overload and end."""

    op: int
    xid: int
    hardware: bytes
    options: Mapping[int, bytes] = field(default_factory=dict)
    htype: int = 1
    secs: int = 0
    flags: int = 0
    ciaddr: IPv4Address = ANY
    yiaddr: IPv4Address = ANY
    siaddr: IPv4Address = ANY
    giaddr: IPv4Address = ANY

    @property
    def type(self) -> int:
        """Option 53, or 0 where it is absent or not one byte (a BOOTP reply)."""
        data = self.options.get(Option.MESSAGE_TYPE, b"")
        return data[0] if len(data) == 1 else 0


def encode(message: Message) -> bytes:
    """At least 300 bytes; option 53 first, 255 last; options over 255 bytes are split. Raises LocalError where a
    field does not fit."""
    if len(message.hardware) > 16 or not 0 <= message.xid < 1 << 32:
        raise LocalError("hardware address over 16 bytes or xid over 32 bits")
    out = bytearray(
        FIXED.pack(
            message.op, message.htype, len(message.hardware), 0, message.xid, min(message.secs, 0xFFFF), message.flags,
            message.ciaddr.packed, message.yiaddr.packed, message.siaddr.packed, message.giaddr.packed,
            message.hardware, b"", b"",
        )
    )  # fmt: skip
    out += COOKIE
    for code, data in sorted(message.options.items(), key=lambda item: item[0] != Option.MESSAGE_TYPE):
        if not 0 < code < 255:
            raise LocalError(f"option {code}")
        for start in range(0, len(data) or 1, 255):
            piece = data[start : start + 255]
            out += bytes((code, len(piece))) + piece
    out.append(255)
    return bytes(out.ljust(MIN_SIZE, b"\0"))


def decode(data: bytes) -> Message:
    """Raises PeerError where the fixed part is cut, the cookie is absent or hlen is over 16. Options that run over the
    end are dropped, those before them kept; a missing 255 is forgiven."""
    if len(data) < FIXED.size + len(COOKIE):
        raise PeerError(f"DHCP message of {len(data)} bytes")
    op, htype, hlen, _hops, xid, secs, flags, ci, yi, si, gi, hardware, sname, file = FIXED.unpack_from(data)
    if hlen > 16:
        raise PeerError(f"hardware address of {hlen} bytes")
    if data[FIXED.size : FIXED.size + 4] != COOKIE:
        raise PeerError("no DHCP cookie")
    options: dict[int, bytearray] = {}
    _scan(data[FIXED.size + 4 :], options)
    overload = options.pop(Option.OVERLOAD, b"")
    # RFC 3396 section 5: the order is options, file, sname.
    if len(overload) == 1 and overload[0] & 1:
        _scan(file, options)
    if len(overload) == 1 and overload[0] & 2:
        _scan(sname, options)
    options.pop(Option.OVERLOAD, None)
    return Message(
        op, xid, hardware[:hlen], {code: bytes(value) for code, value in options.items()}, htype, secs, flags,
        IPv4Address(ci), IPv4Address(yi), IPv4Address(si), IPv4Address(gi),
    )  # fmt: skip


def _scan(data: bytes, options: dict[int, bytearray]) -> None:
    pos = 0
    while pos < len(data):
        code = data[pos]
        pos += 1
        if code == 255:
            return
        if code == 0:
            continue
        if pos >= len(data) or pos + 1 + data[pos] > len(data):
            return
        size = data[pos]
        options.setdefault(code, bytearray()).extend(data[pos + 1 : pos + 1 + size])
        pos += 1 + size


def number(data: bytes, size: int) -> int | None:
    """An unsigned big-endian number of exactly ``size`` bytes."""
    return int.from_bytes(data, "big") if len(data) == size else None


def address(data: bytes) -> IPv4Address | None:
    return IPv4Address(data) if len(data) == 4 else None


def addresses(data: bytes) -> tuple[IPv4Address, ...] | None:
    """A list of addresses; None where the length is 0 or not a multiple of 4."""
    if not data or len(data) % 4:
        return None
    return tuple(IPv4Address(data[i : i + 4]) for i in range(0, len(data), 4))


def text(data: bytes) -> str | None:
    """A domain name (options 12, 15) in lower case, without final NULs and dot. None unless it is made of letters,
    digits, ``-`` and ``_``: it ends up in files that other programs parse."""
    name = data.rstrip(b"\0").rstrip(b".").decode("latin-1").lower()
    if not 0 < len(name) <= 253 or not all(_label(label) for label in name.split(".")):
        return None
    return name


def _label(label: str) -> bool:
    return 0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "a").isalnum()


def search(data: bytes) -> tuple[str, ...] | None:
    """Option 119: names in DNS wire form, compression pointers relative to the option (RFC 3397 section 2). Names that
    are no host names are left out; None where the form is wrong (a loop, a cut label) or nothing is left."""
    found: list[str] = []
    pos = 0
    while pos < len(data):
        labels, pos = _name(data, pos)
        if pos < 0:
            return None
        name = text(b".".join(labels))
        if name is not None and name not in found:
            found.append(name)
    return tuple(found) or None


def _name(data: bytes, pos: int) -> tuple[list[bytes], int]:
    """Labels and the position after the name; position -1 where the form is wrong. A pointer must lead backwards, so
    the walk ends."""
    labels: list[bytes] = []
    end = -1
    limit = len(data)
    while pos < limit:
        size = data[pos]
        if size == 0:
            return labels, pos + 1 if end < 0 else end
        if size >= 0xC0:
            if pos + 1 >= len(data):
                return labels, -1
            target = (size & 0x3F) << 8 | data[pos + 1]
            end = pos + 2 if end < 0 else end
            if target >= pos:
                return labels, -1
            limit = pos
            pos = target
            continue
        if size > 63 or pos + 1 + size > len(data) or len(labels) >= 127:
            return labels, -1
        labels.append(data[pos + 1 : pos + 1 + size])
        pos += 1 + size
    return labels, -1


def classless_routes(data: bytes) -> tuple[Route, ...] | None:
    """Options 121 and 249: width, the significant bytes of the destination, gateway (0.0.0.0 = on the link). None
    where it is cut or a width is over 32. Host bits are cleared (RFC 3442)."""
    routes = []
    pos = 0
    while pos < len(data):
        width = data[pos]
        size = (width + 7) // 8
        if width > 32 or pos + 5 + size > len(data):
            return None
        destination = data[pos + 1 : pos + 1 + size].ljust(4, b"\0")
        gateway = IPv4Address(data[pos + 1 + size : pos + 5 + size])
        network = IPv4Network((destination, width), strict=False)
        routes.append(Route(network, gateway if int(gateway) else None))
        pos += 5 + size
    return tuple(routes) or None


def static_routes(data: bytes) -> tuple[Route, ...] | None:
    """Option 33: (destination, router) pairs. A destination with host bits is a host, else a classful network; a
    default route is not allowed here (RFC 2132 section 5.8) and left out."""
    values = addresses(data)
    if values is None or len(values) % 2:
        return None
    routes = []
    for destination, gateway in zip(values[::2], values[1::2], strict=True):
        if not int(destination) or not int(gateway):
            continue
        width = classful(destination)
        if int(destination) & (0xFFFFFFFF >> width):
            width = 32
        routes.append(Route(IPv4Network((destination, width)), gateway))
    return tuple(routes) or None


def classful(ip: IPv4Address) -> int:
    """Prefix length of the address class, for servers that send no mask."""
    first = int(ip) >> 24
    return 8 if first < 128 else 16 if first < 192 else 24


def mask_length(data: bytes) -> int | None:
    """Option 1 as a prefix length, 1..32; None where it is no contiguous mask."""
    value = number(data, 4)
    if not value:
        return None
    length = value.bit_count()
    return length if value == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF else None


def wrap(payload: bytes, source: IPv4Address, destination: IPv4Address) -> bytes:
    """An IPv4 packet that carries ``payload`` from UDP port 68 to 67."""
    size = 8 + len(payload)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0xC0, 20 + size, 0, 0, 64, 17, 0, source.packed, destination.packed)
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    pseudo = source.packed + destination.packed + struct.pack("!HH", 17, size)
    ports = struct.pack("!HHH", CLIENT_PORT, SERVER_PORT, size)
    return head + ports + struct.pack("!H", checksum(pseudo + ports + b"\0\0" + payload) or 0xFFFF) + payload


def unwrap(packet: bytes, verify: bool = True) -> tuple[bytes, IPv4Address]:
    """The UDP payload of an IPv4 packet to port 68 and its source. ``verify`` False: the UDP checksum is not complete
    yet (a packet of this machine). Raises PeerError: not IPv4, cut, a fragment, not UDP to 68, checksum wrong."""
    if len(packet) < 28 or packet[0] >> 4 != 4:
        raise PeerError("no IPv4 packet")
    head = (packet[0] & 15) * 4
    total, _, fragment = struct.unpack_from("!HHH", packet, 2)
    if head < 20 or total < head + 8 or total > len(packet):
        raise PeerError("IPv4 length")
    if fragment & 0x3FFF or packet[9] != 17 or checksum(packet[:head]):
        raise PeerError("fragment, not UDP, or IPv4 checksum")
    _, destination, size, given = struct.unpack_from("!HHHH", packet, head)
    if destination != CLIENT_PORT or size < 8 or head + size > total:
        raise PeerError("UDP port or length")
    datagram = packet[head : head + size]
    if verify and given and checksum(packet[12:20] + struct.pack("!HH", 17, size) + datagram):
        raise PeerError("UDP checksum")
    return datagram[8:], IPv4Address(packet[12:16])
