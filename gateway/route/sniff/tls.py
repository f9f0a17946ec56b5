"""TLS: the server name of a ClientHello, across records and segments (RFC 8446 section 4.1.2, RFC 6066 section 3).

Pure. Unknown versions, ciphers and extensions (GREASE, RFC 8701, among them) are passed over.
"""

from __future__ import annotations

from gateway.core.errors import PeerError
from gateway.core.wire import Incomplete, Reader
from gateway.route.sniff.verdict import NEED_MORE, More, Sniffed, domain_of

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME = 22, 1, 0
_RECORD = 16384 + 256
_HELLO = 1 << 16


def sniff(data: bytes) -> Sniffed | More | None:
    if data and data[0] != _HANDSHAKE:
        return None
    found = handshake(data)
    if not isinstance(found, bytes):
        return found
    name = server_name(found)
    return None if name is None else Sniffed("tls", name)


def handshake(data: bytes) -> bytes | More | None:
    """The ClientHello message (without its 4-byte header) of the records at the start of a stream."""
    message = b""
    reader = Reader(data)
    try:
        while True:
            if reader.u8() != _HANDSHAKE or reader.u8() != 3:
                return None
            reader.skip(1)
            size = reader.u16()
            if not 0 < size <= _RECORD:
                return None
            if reader.left < size:
                message += reader.rest()
                return NEED_MORE if plausible(message) else None
            message += reader.take(size)
            if not plausible(message):
                return None
            hello = complete(message)
            if hello is not None:
                return hello
    except Incomplete:
        return NEED_MORE if plausible(message) else None


def plausible(message: bytes) -> bool:
    """Whether ``message`` may be the start of a ClientHello."""
    return message[:1] in (b"", b"\x01") and int.from_bytes(message[1:4].ljust(3, b"\0"), "big") <= _HELLO


def complete(message: bytes) -> bytes | None:
    """The body of a ClientHello that ``message`` holds whole, else None."""
    size = int.from_bytes(message[1:4], "big")
    return message[4 : 4 + size] if len(message) >= 4 + size and len(message) >= 4 else None


def server_name(hello: bytes) -> str | None:
    """The name in ``hello``; "" where it has none, None where it is no ClientHello."""
    reader = Reader(hello)
    try:
        if reader.u8() != 3:
            return None
        reader.skip(1 + 32)
        reader.skip(reader.u8())
        reader.skip(reader.u16())
        reader.skip(reader.u8())
        if not reader.left:
            return ""
        extensions = Reader(reader.take(reader.u16()))
        while extensions.left:
            kind = extensions.u16()
            body = extensions.take(extensions.u16())
            if kind == _SERVER_NAME:
                return _host(Reader(body))
    except PeerError:
        return None
    return ""


def _host(reader: Reader) -> str:
    names = Reader(reader.take(reader.u16()))
    while names.left:
        kind = names.u8()
        name = names.take(names.u16())
        if kind == 0:
            return domain_of(name)
    return ""
