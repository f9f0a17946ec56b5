"""VLESS' request and response, as a layer without I/O. Pure."""

from __future__ import annotations

import re
import uuid
from ipaddress import IPv4Address

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.stream import Buffer
from gateway.core.wire import Reader, u16

VERSION = 0
TCP, UDP, MUX = 1, 2, 3
IPV4, DOMAIN, IPV6 = 1, 2, 3

_HEX = "[0-9A-Fa-f]"
_PLAIN = f"(?:{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}|{_HEX}{{32}})"
_UUID = re.compile(rf"{_PLAIN}|\{{{_PLAIN}\}}|urn:uuid:{_PLAIN}")


def identity(text: str) -> bytes:
    """16 bytes: the UUID that ``text`` is, else the one of version 5 made of it, in the namespace of zeros."""
    if _UUID.fullmatch(text):
        return uuid.UUID(text).bytes
    return uuid.uuid5(uuid.UUID(int=0), text).bytes


def request(user: bytes, command: int, destination: Address | None) -> bytes:
    """``destination`` None for ``MUX``. Raises LocalError for a name over 255 bytes."""
    return bytes((VERSION,)) + user + bytes((0, command)) + (b"" if destination is None else address(destination))


def address(destination: Address) -> bytes:
    """Port and address. Raises LocalError for a name over 255 bytes."""
    host = destination.host
    if isinstance(host, str):
        name = host.encode()
        if not 0 < len(name) <= 255:
            raise LocalError("host name over 255 bytes")
        return u16(destination.port) + bytes((DOMAIN, len(name))) + name
    return u16(destination.port) + bytes((IPV4 if isinstance(host, IPv4Address) else IPV6,)) + host.packed


def read_address(reader: Reader) -> Address:
    """Raises Incomplete, and PeerError for another type or a name that is none."""
    port, kind = reader.u16(), reader.u8()
    if kind == IPV4:
        return Address.of(reader.ipv4(), port)
    if kind == IPV6:
        return Address.of(reader.ipv6(), port)
    if kind != DOMAIN:
        raise PeerError(f"address type {kind}")
    return Address.of(socksaddr.text(reader.take(reader.u8())), port)


class Client:
    """Takes the response off the front of what comes; the server sends it with its first bytes."""

    ended = False

    def __init__(self) -> None:
        self._head: bytes | None = b""

    def encode(self, data: Buffer) -> Buffer:
        return data

    def encode_eof(self) -> Buffer:
        return b""

    def decode(self, data: Buffer) -> Buffer:
        if self._head is None:
            return data
        head = self._head = self._head + data
        if head[:1] not in (b"", bytes((VERSION,))):
            raise PeerError(f"vless: response of version {head[0]}")
        if len(head) < 2 or len(head) < 2 + head[1]:
            return b""
        self._head = None
        return head[2 + head[1] :]
