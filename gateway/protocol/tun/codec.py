"""Packets that reach the device: what they are, and what is answered. Pure.

RFC 791, 792, 1071, 8200, 4443, 2460 section 4 (extension headers). Nothing here is longer than what came in, but for an
error message, which quotes at most 548 (IPv4) or 1232 (IPv6) bytes.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from gateway.core.address import IP

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
ECHO = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
UNREACHABLE = {4: 3, 6: 1}
PORT = {4: (3, 3), 6: (1, 4)}
"""Type and code: nobody listens."""
PROTOCOL = {4: (3, 2), 6: (4, 1)}
"""Nobody speaks that protocol."""
PROHIBITED = {4: (3, 13), 6: (1, 1)}
QUOTED = {4: 548, 6: 1232}
HOPS = 64
_EXTENSIONS = frozenset({0, 43, 60})
FRAGMENT = 44


class Packet(NamedTuple):
    """``rest``: where what is above IP begins. ``fragment``: only a part, so that the rest says little."""

    source: IP
    destination: IP
    protocol: int
    hops: int
    rest: int
    fragment: bool
    data: bytes

    @property
    def family(self) -> int:
        return self.source.version


class Echo(NamedTuple):
    """An echo request or reply."""

    identifier: int
    sequence: int
    payload: bytes


def parse(data: bytes) -> Packet | None:
    """None for what is no whole IP packet."""
    if len(data) >= 20 and data[0] >> 4 == 4:
        rest, total = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        if not 20 <= rest <= total <= len(data):
            return None
        fragment = bool(int.from_bytes(data[6:8], "big") & 0x3FFF)
        source, destination = IPv4Address(data[12:16]), IPv4Address(data[16:20])
        return Packet(source, destination, data[9], data[8], rest, fragment, data[:total])
    if len(data) >= 40 and data[0] >> 4 == 6:
        total = 40 + int.from_bytes(data[4:6], "big")
        if total > len(data):
            return None
        return _parse6(data[:total])
    return None


def _parse6(data: bytes) -> Packet | None:
    protocol, rest, fragment = data[6], 40, False
    while protocol in _EXTENSIONS or protocol == FRAGMENT:
        if rest + 8 > len(data):
            return None
        step = 8 if protocol == FRAGMENT else 8 + data[rest + 1] * 8
        fragment |= protocol == FRAGMENT
        protocol, rest = data[rest], rest + step
    if rest > len(data):
        return None
    return Packet(IPv6Address(data[8:24]), IPv6Address(data[24:40]), protocol, data[7], rest, fragment, data)


def echo(packet: Packet) -> Echo | None:
    """The request that it is, else None."""
    if packet.protocol != (ICMP if packet.family == 4 else ICMP6) or packet.fragment:
        return None
    return read_echo(packet.data[packet.rest :], ECHO[packet.family])


def read_echo(message: bytes, kind: int) -> Echo | None:
    """An ICMP message of type ``kind``, else None."""
    if len(message) < 8 or message[0] != kind or message[1]:
        return None
    identifier, sequence = struct.unpack_from("!HH", message, 4)
    return Echo(identifier, sequence, message[8:])


def write_echo(family: int, kind: int, echo: Echo, source: IP | None = None, destination: IP | None = None) -> bytes:
    """The ICMP message; the checksum of ICMPv6 needs the addresses (0 without: a raw socket fills it in)."""
    head = struct.pack("!BBHHH", kind, 0, 0, echo.identifier, echo.sequence)
    return _summed(family, head + echo.payload, source, destination)


def quoted_echo(message: bytes, family: int) -> tuple[IP, Echo] | None:
    """Of an ICMP error: destination of the echo request that it quotes, and what of it is there; else None."""
    inner = message[8:]
    if family == 4:
        if len(inner) < 20 or inner[0] >> 4 != 4 or inner[9] != ICMP:
            return None
        destination: IP = IPv4Address(inner[16:20])
        rest = (inner[0] & 15) * 4
    else:
        if len(inner) < 40 or inner[0] >> 4 != 6 or inner[6] != ICMP6:
            return None
        destination, rest = IPv6Address(inner[24:40]), 40
    found = read_echo(inner[rest:], ECHO[family])
    return None if found is None else (destination, found)


def packet(source: IP, destination: IP, message: bytes, hops: int = HOPS) -> bytes:
    """An ICMP message, whole and summed, as a packet."""
    if source.version == 4:
        total = 20 + len(message)
        head = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, hops, ICMP, 0) + source.packed + destination.packed
        return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message
    head = struct.pack("!IHBB", 6 << 28, len(message), ICMP6, hops)
    return head + source.packed + destination.packed + message


def reply(asked: Packet, said: Echo) -> bytes:
    """The answer to an echo request, as its destination would give it."""
    family = asked.family
    message = write_echo(family, ECHO_REPLY[family], said, asked.destination, asked.source)
    return packet(asked.destination, asked.source, message)


def request(source: IP, destination: IP, said: Echo) -> Packet:
    """An echo request as it might have been sent."""
    family = source.version
    message = write_echo(family, ECHO[family], said, source, destination)
    made = parse(packet(source, destination, message))
    assert made is not None
    return made


def error(about: Packet, kind: int, code: int, source: IP | None = None, more: int | None = None) -> bytes:
    """An ICMP error in the name of ``source`` (the destination of what it is about). ``more``: the second word of its
    header (an MTU, a pointer)."""
    source = source or about.destination
    if more is None:
        # Parameter problem: the pointer to the next header field that nobody knows.
        more = 6 if (about.family, kind) == (6, 4) else 0
    message = struct.pack("!BBHI", kind, code, 0, more) + about.data[: QUOTED[about.family]]
    return packet(source, about.source, _summed(about.family, message, source, about.source))


def swapped(about: Packet) -> bytes:
    """The packet back to where it came from: the sums of both headers stay as they are, whatever is in them."""
    data, size = about.data, len(about.source.packed)
    at = 12 if size == 4 else 8
    return data[:at] + data[at + size : at + 2 * size] + data[at : at + size] + data[at + 2 * size :]


def answerable(about: Packet) -> bool:
    """Whether an error may be sent: never about an error or a later fragment, nor where it would go to many (RFC 1122
    section 3.2.2, RFC 4443 section 2.4)."""
    source, destination = about.source, about.destination
    if source.is_unspecified or source.is_multicast or source.is_loopback or destination.is_multicast:
        return False
    if destination == IPv4Address("255.255.255.255") or about.fragment:
        return False
    if about.protocol == ICMP:
        return about.data[about.rest : about.rest + 1] == b"\x08"
    return about.protocol != ICMP6 or about.data[about.rest : about.rest + 1] >= b"\x80"


def _summed(family: int, message: bytes, source: IP | None, destination: IP | None) -> bytes:
    pseudo = b""
    if family == 6:
        if source is None or destination is None:
            return message
        pseudo = source.packed + destination.packed + struct.pack("!IHBB", len(message), 0, 0, ICMP6)
    return message[:2] + checksum(pseudo + message).to_bytes(2, "big") + message[4:]


def checksum(data: bytes) -> int:
    """RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
