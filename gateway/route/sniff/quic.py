"""QUIC: the server name in the Initial packets of a client, versions 1 and 2 (RFC 9000, 9001, 9369). Pure.

The keys of Initial packets are known to all who see the first one. CRYPTO frames are put together over several
datagrams, in any order.
"""

from __future__ import annotations

import hmac
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.core.errors import PeerError
from gateway.core.wire import Reader, u16
from gateway.route.sniff import tls
from gateway.route.sniff.verdict import NEED_MORE, More, Sniffed

LONGEST = 1 << 16
"""Most bytes of CRYPTO data kept, and the highest offset."""
FRAGMENTS = 512
DATAGRAMS = 16
"""After so many datagrams without a name the flow is left alone."""


class Version(NamedTuple):
    salt: bytes
    initial: int
    """Packet type bits of Initial."""
    key: bytes
    iv: bytes
    hp: bytes


VERSIONS = {
    0x00000001: Version(
        bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), 0, b"quic key", b"quic iv", b"quic hp"
    ),
    0x6B3343CF: Version(
        bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), 1, b"quicv2 key", b"quicv2 iv", b"quicv2 hp"
    ),
}


class Keys:
    """What protects the Initial packets that a client sends."""

    def __init__(self, version: Version, dcid: bytes) -> None:
        secret = expand(hmac.digest(version.salt, dcid, "sha256"), b"client in", 32)
        self.aead = AESGCM(expand(secret, version.key, 16))
        self.iv = int.from_bytes(expand(secret, version.iv, 12), "big")
        self.mask: CipherContext = Cipher(algorithms.AES(expand(secret, version.hp, 16)), modes.ECB()).encryptor()


def expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with SHA-256 and no context (RFC 8446 section 7.1); at most 32 bytes."""
    name = b"tls13 " + label
    info = u16(size) + bytes((len(name),)) + name + b"\0"
    return hmac.digest(secret, info + b"\x01", "sha256")[:size]


class State:
    """The Initial packets of one flow."""

    __slots__ = ("_count", "_fragments", "_keys", "_size")

    def __init__(self) -> None:
        self._keys: Keys | None = None
        self._fragments: dict[int, bytes] = {}
        self._size = 0
        self._count = 0

    def feed(self, datagram: bytes) -> Sniffed | More | None:
        """None where it is no QUIC of a client, or its hello cannot be read."""
        self._count += 1
        known = bool(self._fragments)
        reader = Reader(datagram)
        try:
            while reader.left and datagram[reader.pos]:  # what is padded with zeros is not coalesced
                if not self._packet(reader):
                    break
        except (PeerError, InvalidTag):
            pass
        if not self._fragments or (known and self._count > DATAGRAMS):
            return None
        return self._verdict()

    def _packet(self, reader: Reader) -> bool:
        """One coalesced packet; False where it is not an Initial that can be read."""
        start = reader.pos
        first = reader.u8()
        version = VERSIONS.get(reader.u32())
        if version is None or first & 0xC0 != 0xC0:
            return False
        dcid = reader.take(connection_id(reader.u8()))
        reader.skip(connection_id(reader.u8()))
        initial = first >> 4 & 3 == version.initial
        if initial:
            reader.skip(varint(reader))
        size = varint(reader)
        number = reader.pos - start
        body = reader.take(size)
        if initial:
            self._keys = self._keys or Keys(version, dcid)
            packet = bytearray(reader.data[start : start + number]) + body
            self._frames(Reader(unprotect(self._keys, packet, number)))
        return True

    def _frames(self, reader: Reader) -> None:
        while reader.left:
            kind = varint(reader)
            if kind in (2, 3):
                skip_ack(reader, kind == 3)
            elif kind == 6:
                offset = varint(reader)
                self._keep(offset, reader.take(varint(reader)))
            elif kind > 1:
                return

    def _keep(self, offset: int, data: bytes) -> None:
        old = self._fragments.get(offset, b"")
        grown = self._size + len(data) - len(old)
        if len(data) <= len(old) or offset + len(data) > LONGEST or grown > LONGEST:
            return
        if len(self._fragments) < FRAGMENTS or old:
            self._fragments[offset] = data
            self._size = grown

    def _verdict(self) -> Sniffed | More | None:
        message = bytearray()
        for offset, data in sorted(self._fragments.items()):
            if offset > len(message):
                break
            message += data[len(message) - offset :]
        if not tls.plausible(bytes(message[:4])):
            return None
        hello = tls.complete(bytes(message))
        if hello is None:
            return NEED_MORE
        name = tls.server_name(hello)
        return None if name is None else Sniffed("quic", name)


def connection_id(size: int) -> int:
    if size > 20:
        raise PeerError("connection id over 20 bytes")
    return size


def varint(reader: Reader) -> int:
    """RFC 9000 section 16."""
    first = reader.u8()
    value = first & 0x3F
    for _ in range((1 << (first >> 6)) - 1):
        value = value << 8 | reader.u8()
    return value


def skip_ack(reader: Reader, ecn: bool) -> None:
    varint(reader)
    varint(reader)
    ranges = varint(reader)
    for _ in range(1 + 2 * ranges + (3 if ecn else 0)):
        varint(reader)


def unprotect(keys: Keys, packet: bytearray, number: int) -> bytes:
    """Payload of the Initial ``packet`` whose packet number starts at ``number`` (RFC 9001 section 5). Raises
    InvalidTag, PeerError."""
    sample = bytes(packet[number + 4 : number + 20])
    if len(sample) < 16:
        raise PeerError("packet too short")
    mask = keys.mask.update(sample)
    packet[0] ^= mask[0] & 0x0F
    size = (packet[0] & 3) + 1
    for index in range(size):
        packet[number + index] ^= mask[1 + index]
    end = number + size
    # Packet numbers of a first flight are small: what is on the wire is the whole number.
    nonce = (keys.iv ^ int.from_bytes(packet[number:end], "big")).to_bytes(12, "big")
    if len(packet) - end < 16:
        raise PeerError("packet too short")
    return keys.aead.decrypt(nonce, bytes(packet[end:]), bytes(packet[:end]))
