"""Trojan's request and its datagrams. Pure."""

from __future__ import annotations

import hashlib

from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.stream import Buffer
from gateway.core.wire import Reader, u16

CONNECT, ASSOCIATE = 1, 3
CRLF = b"\r\n"


def key(password: str) -> bytes:
    """56 hexadecimal digits."""
    return hashlib.sha224(password.encode()).hexdigest().encode()


def request(key: bytes, command: int, destination: Address) -> bytes:
    """Raises LocalError for a name over 255 bytes."""
    return key + CRLF + bytes((command,)) + socksaddr.write(destination) + CRLF


class Datagrams:
    """Datagrams of an association, in both directions. See ``transport.carried.Framing``."""

    def wrap(self, data: Buffer, peer: Address) -> bytes:
        if len(data) > 0xFFFF:
            raise LocalError("datagram over 65535 bytes")
        return socksaddr.write(peer) + u16(len(data)) + CRLF + data

    def unwrap(self, reader: Reader) -> tuple[Address, bytes]:
        peer = socksaddr.read(reader)
        size = reader.u16()
        if reader.take(2) != CRLF:
            raise PeerError("trojan: no CRLF before a datagram")
        return peer, reader.take(size)
