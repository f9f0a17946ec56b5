"""Reading and writing of binary formats, with every length checked before use. Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from gateway.core.errors import PeerError

_U16 = struct.Struct("!H")
_U32 = struct.Struct("!I")
_U64 = struct.Struct("!Q")


class Incomplete(PeerError):
    """More bytes are needed; a stream codec waits for them, a datagram codec lets it end the packet."""


class Reader:
    """A cursor over received bytes. Every method raises Incomplete where the bytes run out."""

    __slots__ = ("data", "pos")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = memoryview(data)
        self.pos = 0

    def _take(self, size: int) -> memoryview:
        end = self.pos + size
        if size < 0 or end > len(self.data):
            raise Incomplete(f"{size} bytes wanted, {len(self.data) - self.pos} left")
        view = self.data[self.pos : end]
        self.pos = end
        return view

    def u8(self) -> int:
        return self._take(1)[0]

    def u16(self) -> int:
        return int(_U16.unpack(self._take(2))[0])

    def u32(self) -> int:
        return int(_U32.unpack(self._take(4))[0])

    def u64(self) -> int:
        return int(_U64.unpack(self._take(8))[0])

    def take(self, size: int) -> bytes:
        return bytes(self._take(size))

    def skip(self, size: int) -> None:
        self._take(size)

    def ipv4(self) -> IPv4Address:
        return IPv4Address(bytes(self._take(4)))

    def ipv6(self) -> IPv6Address:
        return IPv6Address(bytes(self._take(16)))

    def uvarint(self) -> int:
        """Unsigned LEB128 of at most 64 bits, as Go's binary.Uvarint."""
        value = shift = 0
        while True:
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if value >= 1 << 64:
                    raise PeerError("uvarint over 64 bits")
                return value
            shift += 7
            if shift > 63:
                raise PeerError("uvarint over 64 bits")

    @property
    def left(self) -> int:
        return len(self.data) - self.pos

    def rest(self) -> bytes:
        return bytes(self._take(self.left))


def u16(value: int) -> bytes:
    return _U16.pack(value)


def u32(value: int) -> bytes:
    return _U32.pack(value)


def u64(value: int) -> bytes:
    return _U64.pack(value)


def uvarint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
