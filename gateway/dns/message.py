"""DNS messages as bytes: what a forwarder must read and change, without a tree of objects. Pure.

Not a full codec: records are located, not decoded, except addresses. Follows RFC 1035 section 4 (messages), RFC 6891
(EDNS), RFC 2181 section 8 (TTLs), RFC 2308 (negative answers), RFC 9460 (address hints).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from gateway.core.address import IP
from gateway.core.errors import LocalError, PeerError

HEADER = 12
LARGEST = 65535
PLAIN = 512
"""Bytes of a UDP answer to a client without EDNS (RFC 1035 section 4.2.1)."""
LONGEST = 4096
"""Bytes of a UDP answer at most: more pieces than that rarely all arrive (RFC 6891 section 6.2.5)."""

MOST_TARGETS = 64
"""Names that one answer may lead to; who gives more is not believed."""
MOST_ADDRESSES = 256
"""Of one answer, as many A records as fit in ``LONGEST``; who gives more is not believed either."""

A, CNAME, SOA, AAAA, OPT, SVCB, HTTPS = 1, 5, 6, 28, 41, 64, 65
IN = 1
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
ANSWER, AUTHORITY, ADDITIONAL = 1, 2, 3
QR, TC, RD, RA = 0x8000, 0x0200, 0x0100, 0x0080

_COUNTS = struct.Struct("!HHHHHH")
_PAIR = struct.Struct("!HH")
_RECORD = struct.Struct("!HHIH")
_NAME = 255
_BETWEEN_TWO = frozenset({10, 11, 12})
_HINTS: dict[int, type[IPv4Address] | type[IPv6Address]] = {4: IPv4Address, 6: IPv6Address}
"""SvcParamKeys ipv4hint and ipv6hint."""


class Question(NamedTuple):
    """The one question. ``name`` is lower case without a final dot ("" is the root), bytes outside printable ASCII and
    dots inside a label as ``\\DDD``; ``end`` is the offset behind it."""

    name: str
    type: int
    klass: int
    end: int


class Record(NamedTuple):
    """Where one record lies. ``ttl`` is 0 where the wire has one above 2**31-1."""

    section: int
    type: int
    klass: int
    ttl: int
    ttl_at: int
    data_at: int
    end: int


def skip_name(data: bytes, offset: int) -> int:
    """Offset behind the name at ``offset``; pointers are not followed. Raises PeerError."""
    start, size = offset, len(data)
    while offset < size:
        length = data[offset]
        if length >= 0xC0:
            if offset + 2 > size:
                break
            return offset + 2
        if length > 63:
            raise PeerError("dns: label type")
        offset += length + 1
        if offset - start > _NAME:
            raise PeerError("dns: name too long")
        if not length:
            return offset
    raise PeerError("dns: cut inside a name")


def read_name(data: bytes, offset: int) -> str:
    """The name at ``offset``, pointers followed; each must point before the part that it ends, so there is no loop.
    Raises PeerError."""
    labels: list[str] = []
    size, limit = 1, offset
    while True:
        if offset >= len(data):
            raise PeerError("dns: cut inside a name")
        length = data[offset]
        if length >= 0xC0:
            if offset + 2 > len(data):
                raise PeerError("dns: cut inside a name")
            offset = (length & 0x3F) << 8 | data[offset + 1]
            if offset >= limit or offset < HEADER:
                raise PeerError("dns: pointer does not point back")
            limit = offset
            continue
        if length > 63:
            raise PeerError("dns: label type")
        if not length:
            return ".".join(labels)
        label = data[offset + 1 : offset + 1 + length]
        size += length + 1
        if len(label) < length or size > _NAME:
            raise PeerError("dns: name cut or too long")
        labels.append(_text(label))
        offset += length + 1


def _text(label: bytes) -> str:
    if label.isalnum() and label.isascii():
        return label.decode().lower()
    return "".join(chr(c) if 33 <= c <= 126 and c not in b".\\" else f"\\{c:03d}" for c in label.lower())


def write_name(name: str) -> bytes:
    """Wire form, uncompressed. International names go as IDNA. Raises LocalError."""
    out = bytearray()
    for label in name.rstrip(".").split("."):
        try:
            raw = label.encode("ascii") if label.isascii() else label.encode("idna")
        except UnicodeError:
            raise LocalError(f"{name!r} is not a domain name") from None
        if not 0 < len(raw) <= 63:
            if name in ("", "."):
                break
            raise LocalError(f"{name!r} is not a domain name")
        out.append(len(raw))
        out += raw
    if len(out) >= _NAME:
        raise LocalError(f"{name!r} is too long for a domain name")
    return bytes(out) + b"\0"


def query(name: str, kind: int, ident: int = 0) -> bytes:
    """A recursive query of class IN with an EDNS record of 1232 bytes (RFC 6891; the size that fits every path).
    Raises LocalError."""
    opt = b"\0" + _RECORD.pack(OPT, 1232, 0, 0)
    return _COUNTS.pack(ident, RD, 1, 0, 0, 1) + write_name(name) + _PAIR.pack(kind, IN) + opt


def flags(data: bytes) -> int:
    """The flag word. Raises PeerError where there is no header."""
    if len(data) < HEADER:
        raise PeerError("dns: no header")
    return data[2] << 8 | data[3]


def rcode(data: bytes) -> int:
    """The four bits of the header."""
    return flags(data) & 15


def question(data: bytes) -> Question:
    """The one question of a query or an answer. Raises PeerError where there is not exactly one, or where its name is
    compressed (nothing stands before it)."""
    if len(data) < HEADER or data[4:6] != b"\0\1":
        raise PeerError("dns: not one question")
    end = skip_name(data, HEADER)
    if data[end - 1] or end + 4 > len(data):
        raise PeerError("dns: question cut or compressed")
    kind, klass = _PAIR.unpack_from(data, end)
    return Question(read_name(data, HEADER), kind, klass, end + 4)


def answers(data: bytes, asked: bytes) -> bool:
    """Whether ``data`` is an answer to query ``asked``, its id aside."""
    try:
        if not flags(data) & QR:
            return False
        # An error may come back without its question.
        bare = data[4:6] == b"\0\0" and rcode(data) != NOERROR
        return bare or question(data)[:3] == question(asked)[:3]
    except PeerError:
        return False


def records(data: bytes) -> list[Record]:
    """All records in order. Raises PeerError where one is cut, or where a count says more than there is."""
    if len(data) < HEADER:
        raise PeerError("dns: no header")
    _, _, questions, *counts = _COUNTS.unpack_from(data)
    offset = HEADER
    for _ in range(questions):
        offset = skip_name(data, offset) + 4
    found: list[Record] = []
    for section, count in enumerate(counts, ANSWER):
        for _ in range(count):
            offset = skip_name(data, offset)
            if offset + 10 > len(data):
                raise PeerError("dns: record cut")
            kind, klass, ttl, size = _RECORD.unpack_from(data, offset)
            end = offset + 10 + size
            if end > len(data):
                raise PeerError("dns: record data cut")
            found.append(Record(section, kind, klass, ttl if ttl < 1 << 31 else 0, offset + 4, offset + 10, end))
            offset = end
    if offset > len(data):
        raise PeerError("dns: question cut")
    return found


def lifetime(data: bytes, found: Iterable[Record]) -> int:
    """Seconds that an answer may be kept: the least TTL of its records; without answer records that of the SOA, at most
    its MINIMUM (RFC 2308 section 5). 0: not at all."""
    found = [record for record in found if record.type != OPT]
    least = min((record.ttl for record in found), default=0)
    if any(record.section == ANSWER for record in found) and rcode(data) != NXDOMAIN:
        return least
    for record in found:
        if record.type == SOA and record.section == AUTHORITY and record.end - record.data_at >= 22:
            return min(least, int.from_bytes(data[record.end - 4 : record.end], "big"))
    return 0


def with_ttl(data: bytes, offsets: Iterable[int], ttl: int) -> bytes:
    """``data`` with ``ttl`` at each of ``offsets``."""
    out = bytearray(data)
    raw = ttl.to_bytes(4, "big")
    for offset in offsets:
        out[offset : offset + 4] = raw
    return bytes(out)


def addresses(data: bytes) -> list[tuple[IP, int]]:
    """(address, TTL) of every A and AAAA record of the answer section, and of the hints in SVCB and HTTPS records.
    Records of a wrong size are left out. Raises PeerError on a malformed message."""
    return [(ip, record.ttl) for record in records(data) if record.section == ANSWER for ip in _addresses(data, record)]


def _addresses(data: bytes, record: Record) -> list[IP]:
    _, kind, klass, _, _, start, end = record
    if klass != IN:
        return []
    if kind == A and end - start == 4:
        return [IPv4Address(data[start:end])]
    if kind == AAAA and end - start == 16:
        return [IPv6Address(data[start:end])]
    return _hints(data, start, end) if kind in (SVCB, HTTPS) else []


class Lesson(NamedTuple):
    """What a client may do after an answer: connect to ``addresses`` under ``name``, or ask for ``targets`` and connect
    to what they have, under ``name`` too."""

    name: str
    addresses: tuple[IP, ...]
    targets: tuple[str, ...]


def lesson(data: bytes) -> Lesson:
    """Of an answer. The name is the question's, whatever aliases lead from there; of SVCB and HTTPS without the labels
    in front that name port and scheme (RFC 9460 section 2.3). With those the addresses of the additional section count
    too. Targets are those of SVCB and HTTPS records, and the end of an alias that the answer breaks off at. Raises
    PeerError, also where it is more than anybody needs."""
    asked = question(data)
    name = asked.name
    if asked.type in (SVCB, HTTPS):
        while name.startswith("_") and "." in name:
            name = name.partition(".")[2]
    found: dict[IP, None] = {}
    targets: dict[str, None] = {}
    owners: list[int] = []
    aliases: list[int] = []
    service = whole = False
    at = asked.end
    for record in records(data):
        kind = record.type
        service = service or (record.section == ANSWER and kind in (SVCB, HTTPS))
        whole = whole or (record.section == AUTHORITY and kind == SOA)
        if record.klass == IN and (record.section == ANSWER or (service and record.section == ADDITIONAL)):
            found.update(dict.fromkeys(_addresses(data, record)))
            owners.append(at)
            if kind in (SVCB, HTTPS) and (target := _target(data, record, at)):
                targets[target] = None
            elif kind == CNAME:
                aliases.append(record.data_at)
        at = record.end
    if aliases and not whole:
        answered = {read_name(data, place) for place in owners}
        targets.update({alias: None for place in aliases if (alias := read_name(data, place)) not in answered})
    if len(found) > MOST_ADDRESSES:
        raise PeerError(f"dns: answer with {len(found)} addresses")
    if len(targets) > MOST_TARGETS:
        raise PeerError(f"dns: answer that leads to {len(targets)} names")
    return Lesson(name, tuple(found), tuple(one for one in targets if one not in (name, asked.name)))


def _target(data: bytes, record: Record, owner: int) -> str:
    """Where a client goes on to: "." is the record's own name, or nowhere in an alias (RFC 9460 section 2.5)."""
    if record.end - record.data_at < 3:
        return ""
    try:
        target = read_name(data[: record.end], record.data_at + 2)
    except PeerError:
        return ""
    return target or (read_name(data, owner) if data[record.data_at : record.data_at + 2] != b"\0\0" else "")


def _hints(data: bytes, offset: int, end: int) -> list[IP]:
    found: list[IP] = []
    try:
        offset = skip_name(data[:end], offset + 2)
    except PeerError:
        return found
    while offset + 4 <= end:
        key, size = _PAIR.unpack_from(data, offset)
        value = data[offset + 4 : min(offset + 4 + size, end)]
        offset += 4 + size
        kind = _HINTS.get(key)
        if kind is not None and len(value) == size:
            step = 4 if key == 4 else 16
            found += [kind(value[at : at + step]) for at in range(0, size - step + 1, step)]
    return found


def payload_size(data: bytes) -> int:
    """Bytes of the UDP answer that the sender of query ``data`` takes: its EDNS size, 512 to 4096. Raises PeerError."""
    if data[10:12] == b"\0\0":
        return PLAIN
    sizes = [record.klass for record in records(data) if record.type == OPT]
    return min(max(sizes[0], PLAIN), LONGEST) if sizes else PLAIN


def plain(data: bytes) -> bytes:
    """Query ``data`` without the EDNS options that are between two hosts alone: cookie, keep-alive, padding (RFC 7873,
    7828, 7830). Unchanged where its last record is not such an EDNS record. Raises PeerError."""
    if data[10:12] != b"\0\1":
        return data
    last = records(data)[-1]
    if last.type != OPT or last.end != len(data):
        return data
    kept = bytearray()
    offset = last.data_at
    while offset + 4 <= last.end:
        code, size = _PAIR.unpack_from(data, offset)
        if code not in _BETWEEN_TWO:
            kept += data[offset : offset + 4 + size]
        offset += 4 + size
    if offset != last.end:
        raise PeerError("dns: EDNS option cut")
    return data[: last.data_at - 2] + len(kept).to_bytes(2, "big") + kept


def truncate(data: bytes, limit: int) -> bytes:
    """An answer that fits in ``limit`` bytes: unchanged, or only its question and EDNS record with TC set, so that the
    client asks again over TCP (RFC 2181 section 9). Raises PeerError on a malformed answer."""
    if len(data) <= limit:
        return data
    end = question(data).end
    extra = b"".join(
        b"\0" + data[record.ttl_at - 4 : record.end]
        for record in records(data)
        if record.type == OPT and end + 11 + record.end - record.data_at <= limit
    )[: limit - end]
    word = flags(data) | TC
    return data[:2] + word.to_bytes(2, "big") + b"\0\1\0\0\0\0\0" + bytes([bool(extra)]) + data[HEADER:end] + extra


def reply(
    asked: bytes, code: int, data: Iterable[tuple[int, bytes]] = (), ttl: int = 0, *, authoritative: bool = False
) -> bytes:
    """Our own answer to query ``asked``: ``code`` and records of (type, rdata) owned by the question's name. Where the
    question is unreadable only the header is answered. Raises PeerError where there is no header."""
    word = flags(asked) & (0x7800 | RD) | QR | RA | (0x0400 if authoritative else 0) | code
    try:
        end = question(asked).end
    except PeerError:
        return asked[:2] + _COUNTS.pack(0, word, 0, 0, 0, 0)[2:]
    body = [b"\xc0\x0c" + _RECORD.pack(kind, IN, ttl, len(raw)) + raw for kind, raw in data]
    edns = b""
    try:
        if any(record.type == OPT for record in records(asked)):
            edns = b"\0" + _RECORD.pack(OPT, 1232, 0, 0)
    except PeerError:
        word = word & ~15 | FORMERR
        body = []
    head = _COUNTS.pack(0, word, 1, len(body), 0, 1 if edns else 0)[2:]
    return asked[:2] + head + asked[HEADER:end] + b"".join(body) + edns
