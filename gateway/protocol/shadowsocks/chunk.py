"""Chunks of a Shadowsocks stream, one direction each: length and payload, each with its tag. Pure.

The bulk path is ``Sealer.seal`` and ``Opener.feed``: they encrypt and decrypt straight into one buffer, one contiguous
output a call.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag

from gateway.core.errors import AuthError, PeerError
from gateway.core.room import Room
from gateway.core.stream import Buffer
from gateway.protocol.shadowsocks.cipher import AEAD, TAG, Method

LENGTH = 2 + TAG
"""Bytes of a sealed length."""


class Sealer:
    """The write half: plain bytes to chunks. The nonce is a counter, little-endian."""

    __slots__ = ("_aead", "_chunk", "_count", "_nonce", "_room")

    def __init__(self, method: Method, key: bytes) -> None:
        self._aead: AEAD = method.open(key)
        self._nonce = method.nonce
        self._chunk = method.chunk
        self._count = 0
        self._room = Room()

    def one(self, data: bytes) -> bytes:
        """``data`` with its tag, without a length before it."""
        out = bytearray(len(data) + TAG)
        self._aead.encrypt_into(self._count.to_bytes(self._nonce, "little"), data, None, out)
        self._count += 1
        return bytes(out)

    def seal(self, data: Buffer) -> memoryview:
        """All of ``data`` as chunks; the view is valid until the next call."""
        view = memoryview(data)
        total = len(view)
        step = self._chunk
        out = self._room.take(total + (total + step - 1) // step * (LENGTH + TAG))
        encrypt, width, count, at = self._aead.encrypt_into, self._nonce, self._count, 0
        for start in range(0, total, step):
            part = view[start : start + step]
            size = len(part)
            body = at + LENGTH
            end = body + size + TAG
            encrypt(count.to_bytes(width, "little"), size.to_bytes(2, "big"), None, out[at:body])
            encrypt((count + 1).to_bytes(width, "little"), part, None, out[body:end])
            count += 2
            at = end
        self._count = count
        return out[:at]


class Opener:
    """The read half: chunks to plain bytes. Keeps at most one partial chunk."""

    __slots__ = ("_aead", "_count", "_limit", "_nonce", "_rest", "_room", "_size", "_two")

    def __init__(self, method: Method, key: bytes) -> None:
        self._aead: AEAD = method.open(key)
        self._nonce = method.nonce
        self._limit = method.chunk
        self._count = 0
        self._size = -1
        self._rest = bytearray()
        self._two = bytearray(2)
        self._room = Room()

    def one(self, data: Buffer) -> bytes:
        """``data`` without its tag. Raises AuthError."""
        out = bytearray(len(data) - TAG)
        try:
            self._aead.decrypt_into(self._count.to_bytes(self._nonce, "little"), data, None, out)
        except InvalidTag:
            raise AuthError("message does not verify") from None
        self._count += 1
        return bytes(out)

    def feed(self, data: Buffer) -> memoryview:
        """Whatever is complete; the view is valid until the next call. Raises AuthError, PeerError."""
        view = memoryview(data)
        rest, size, end = self._rest, self._size, len(view)
        out = self._room.take(end + len(rest))
        decrypt, width, count, two = self._aead.decrypt_into, self._nonce, self._count, self._two
        pos = at = 0
        frame: Buffer
        try:
            while True:
                want = LENGTH if size < 0 else size + TAG
                if rest:
                    take = want - len(rest)
                    rest += view[pos : pos + take]
                    pos = min(pos + take, end)
                    if len(rest) < want:
                        break
                    frame, rest = rest, bytearray()
                elif end - pos >= want:
                    frame = view[pos : pos + want]
                    pos += want
                else:
                    if pos < end:
                        rest = bytearray(view[pos:])
                    break
                nonce = count.to_bytes(width, "little")
                if size < 0:
                    decrypt(nonce, frame, None, two)
                    size = two[0] << 8 | two[1]
                    if size > self._limit:
                        raise PeerError(f"chunk of {size} bytes")
                else:
                    decrypt(nonce, frame, None, out[at : at + size])
                    at += size
                    size = -1
                count += 1
        except InvalidTag:
            raise AuthError("chunk does not verify") from None
        self._rest, self._size, self._count = rest, size, count
        return out[:at]
