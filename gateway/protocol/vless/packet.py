"""Datagrams inside a VLESS connection, in three ways. Pure. See ``transport.carried.Framing``."""

from __future__ import annotations

from ipaddress import IPv4Address

from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.stream import Buffer
from gateway.core.wire import Reader, u16
from gateway.protocol.vless import codec

PACKET_ADDRESS = Address("sp.packet-addr.v2fly.arpa", 0)
"""The destination that says: packetaddr."""
NEW, KEEP, END, ALIVE = 1, 2, 3, 4
DATA, ERROR = 1, 2
UDP = 2
_LARGEST = 512
"""Bytes of a frame's head (Mux.Cool)."""


def _sized(data: Buffer) -> bytes:
    if len(data) > 0xFFFF:
        raise LocalError("datagram over 65535 bytes")
    return u16(len(data)) + data


class Plain:
    """Of one peer."""

    def __init__(self, peer: Address) -> None:
        self._peer = peer

    def wrap(self, data: Buffer, peer: Address) -> bytes:
        if peer != self._peer:
            raise LocalError("another peer")
        return _sized(data)

    def unwrap(self, reader: Reader) -> tuple[Address, bytes]:
        return self._peer, reader.take(reader.u16())


class PacketAddress:
    """Of many peers, by their addresses; names cannot be said."""

    def wrap(self, data: Buffer, peer: Address) -> bytes:
        ip = peer.ip
        if ip is None:
            raise LocalError("packetaddr has no names")
        return _sized(bytes((1 if isinstance(ip, IPv4Address) else 2,)) + ip.packed + u16(peer.port) + data)

    def unwrap(self, reader: Reader) -> tuple[Address, bytes]:
        inside = Reader(reader.take(reader.u16()))
        kind = inside.u8() if inside.left else 0
        if inside.left < {1: 6, 2: 18}.get(kind, 1 << 16):
            raise PeerError(f"packetaddr: type {kind}, {inside.left} bytes")
        ip = inside.ipv4() if kind == 1 else inside.ipv6()
        return Address.of(ip, inside.u16()), inside.rest()


class Xudp:
    """Of many peers, each frame with its own; ``first`` is who sent a frame without one."""

    def __init__(self, first: Address) -> None:
        self._first = first
        self._status = NEW

    def wrap(self, data: Buffer, peer: Address) -> bytes:
        sized, where = _sized(data), codec.address(peer)
        head = bytes((0, 0, self._status, DATA, UDP)) + where
        self._status = KEEP
        return u16(len(head)) + head + sized

    def unwrap(self, reader: Reader) -> tuple[Address, bytes] | None:
        size = reader.u16()
        if not 4 <= size <= _LARGEST:
            raise PeerError(f"xudp: head of {size} bytes")
        head = Reader(reader.take(size))
        head.skip(2)
        status, options = head.u8(), head.u8()
        data = reader.take(reader.u16()) if options & DATA else None
        if status == END or options & ERROR:
            raise EOFError
        if status not in (KEEP, ALIVE):
            raise PeerError(f"xudp: status {status}")
        if data is None or status == ALIVE:
            return None
        if not head.left:
            return self._first, data
        head.skip(1)
        try:
            return codec.read_address(head), data
        except PeerError as error:
            raise PeerError(f"xudp: {error}") from None
