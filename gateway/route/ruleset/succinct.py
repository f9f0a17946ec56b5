"""The succinct set of ``.srs`` files: a LOUDS trie of reversed keys, decoded whole. Pure.

Bit ``i`` of a bitmap is ``word[i >> 6] >> (i & 63) & 1``. In breadth-first order each node writes one 0 and a label
byte a child, then a 1; a node's leaf bit says that a key ends there. Decoded rather than matched in place, because the
compiler needs the names themselves and a set lookup is quicker in Python.
"""

from __future__ import annotations

from gateway.core.errors import PeerError
from gateway.core.wire import Reader

LONGEST_KEY = 1024
"""Bytes; a domain name has 253, an AdGuard pattern little more."""
LARGEST_SUM = 64 << 20
"""Bytes of all keys together."""


def _words(reader: Reader) -> int:
    """A bitmap as one number. Raises PeerError."""
    count = reader.uvarint()
    if count * 8 > reader.left:
        raise PeerError(f"a bitmap of {count} words in {reader.left} bytes")
    raw = reader.take(count * 8)
    # big-endian words, lowest word first: reversing the words gives one big-endian number
    return int.from_bytes(b"".join(raw[at : at + 8] for at in range(len(raw) - 8, -1, -8)), "big")


def read_set(reader: Reader) -> list[str]:
    """All keys, un-reversed, in no particular order. Raises PeerError."""
    if reader.u8() != 0:
        raise PeerError("unknown version of a domain set")
    leaves = _words(reader)
    bitmap = _words(reader)
    count = reader.uvarint()
    labels = reader.take(count)
    leaf = f"{leaves:b}"[::-1]
    keys: list[bytes] = []
    prefix: list[bytes] = [b""]
    node = used = total = 0
    for bit in f"{bitmap:b}"[::-1]:
        if bit == "0":
            if used == count:
                raise PeerError("a domain set has fewer labels than its bitmap")
            child = prefix[node] + labels[used : used + 1]
            if len(child) > LONGEST_KEY:
                raise PeerError(f"a key of a domain set is over {LONGEST_KEY} bytes")
            total += len(child)
            if total > LARGEST_SUM:
                raise PeerError("a domain set is too large")
            prefix.append(child)
            used += 1
            continue
        if node < len(leaf) and leaf[node] == "1":
            keys.append(prefix[node])
        prefix[node] = b""
        node += 1
        if node == len(prefix):
            break
    if node != len(prefix) or used != count:
        raise PeerError("a domain set ends in the middle of its tree")
    return [key.decode("utf-8", "replace")[::-1] for key in keys]
