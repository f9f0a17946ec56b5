"""DNS: whether the bytes are a query (RFC 1035 section 4). Pure.

As in sing-box only the protocol is told; the name of the question is not the name of the flow.
"""

from __future__ import annotations

from gateway.core.errors import PeerError
from gateway.core.wire import Reader
from gateway.route.sniff.verdict import NEED_MORE, More, Sniffed

_SHORTEST = 12 + 1 + 4
_CLASSES = (1, 3, 4, 255)


def sniff(data: bytes) -> Sniffed | None:
    """One datagram."""
    return Sniffed("dns") if _is_query(Reader(data)) else None


def sniff_stream(data: bytes) -> Sniffed | More | None:
    """The start of a stream: two bytes of length, then the message."""
    if len(data) >= 2 and int.from_bytes(data[:2], "big") < _SHORTEST:
        return None
    if not _plausible(data[2:14]):
        return None
    size = int.from_bytes(data[:2], "big")
    if len(data) < 2 or len(data) < 2 + size:
        return NEED_MORE
    return sniff(data[2 : 2 + size])


def _plausible(header: bytes) -> bool:
    """Whether what is there of a header may be a query: QR and opcode 0, one question, no answers."""
    flags, counts = header[2:3], header[4:10]
    return (not flags or not flags[0] & 0xF8) and counts == b"\0\1\0\0\0\0"[: len(counts)]


def _is_query(reader: Reader) -> bool:
    try:
        header = reader.take(12)
        if not _plausible(header):
            return False
        size = 1
        while label := reader.u8():
            if label > 63:
                return False
            size += 1 + label
            reader.skip(label)
        reader.skip(2)
        return size <= 255 and reader.u16() in _CLASSES
    except PeerError:
        return False
