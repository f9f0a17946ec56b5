"""Batches that change elements of the owned table's timeout sets. Pure.

linux/netfilter/nf_tables.h. A change is written as *add old, delete old, add new* in one batch: it needs to know
neither whether the kernel refreshes the timeout of an element that is added again (6.12 and later do) nor whether the
old one has just expired.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from gateway.kernel.nft.message import (
    ACK,
    BATCH_BEGIN,
    BATCH_END,
    CREATE,
    NFTABLES,
    REQUEST,
    attribute,
    message,
    nested,
    string,
    u64,
)
from gateway.kernel.nft.steer_render import learned_name
from gateway.kernel.plan import LearnedChange

TABLE = "gateway"
INET = 1
NEW, DELETE = NFTABLES << 8 | 12, NFTABLES << 8 | 14
DELETE_TABLE = NFTABLES << 8 | 2
LIST_TABLE, LIST_SET, LIST_ELEMENTS = 1, 2, 3
ELEMENT, KEY, TIMEOUT, VALUE = 1, 1, 4, 1

CHUNK = 256
"""Changes in one batch: about 60 KB, well inside the send buffer, and each message under 64 KB."""


class Step(NamedTuple):
    """``add`` or delete ``key`` (bytes as in the packet, each part padded to 4) of a set; timeout in seconds."""

    add: bool
    set: str
    key: bytes
    timeout: int = 0


def collapse(changes: Iterable[LearnedChange]) -> list[LearnedChange]:
    """One change for each element: the first one's ``old``, the last one's ``new``."""
    found: dict[tuple[int, int, int], LearnedChange] = {}
    for change in changes:
        key = (change.profile, change.family, change.address)
        first = found.get(key)
        found[key] = change if first is None else change._replace(old=first.old)
    return list(found.values())


def steps(change: LearnedChange) -> list[Step]:
    """Raises OverflowError for an address that its family does not have."""
    key = change.address.to_bytes(4 if change.family == 4 else 16, "big")
    made = []
    if change.old is not None:
        name = learned_name(change.family, change.profile, change.old)
        made += [Step(True, name, key, max(1, change.timeout)), Step(False, name, key)]
    if change.new is not None:
        name = learned_name(change.family, change.profile, change.new)
        made.append(Step(True, name, key, max(1, change.timeout)))
    return made


def grouped(rows: Sequence[Sequence[Step]]) -> list[tuple[bool, str, list[Step]]]:
    """Messages of a batch: the first steps of all rows, then the second ones, each by set. Keys of rows are distinct,
    so the order inside one row is all that counts."""
    groups: list[tuple[bool, str, list[Step]]] = []
    for position in range(max((len(row) for row in rows), default=0)):
        index: dict[tuple[bool, str], list[Step]] = {}
        for row in rows:
            if position < len(row):
                step = row[position]
                index.setdefault((step.add, step.set), []).append(step)
        groups += [(add, name, found) for (add, name), found in index.items()]
    return groups


def batch(rows: Sequence[Sequence[Step]], sequence: int) -> tuple[bytes, int]:
    """The datagram and the sequence number of its last message, which alone asks for an acknowledgement."""
    groups = grouped(rows)
    parts = [message(BATCH_BEGIN, REQUEST, sequence, 0, resource=NFTABLES)]
    for number, (add, name, found) in enumerate(groups, 1):
        flags = REQUEST | (CREATE if add else 0) | (ACK if number == len(groups) else 0)
        payload = _place(name) + nested(LIST_ELEMENTS, *(_element(step) for step in found))
        parts.append(message(NEW if add else DELETE, flags, sequence + number, INET, payload))
    parts.append(message(BATCH_END, REQUEST, sequence + len(groups) + 1, 0, resource=NFTABLES))
    return b"".join(parts), sequence + len(groups)


def delete_table(name: str = TABLE) -> bytes:
    """The datagram that takes the table away, where it has no owner."""
    parts = (
        message(BATCH_BEGIN, REQUEST, 1, 0, resource=NFTABLES),
        message(DELETE_TABLE, REQUEST, 2, INET, string(1, name)),
        message(BATCH_END, REQUEST, 3, 0, resource=NFTABLES),
    )
    return b"".join(parts)


@lru_cache(1024)
def _place(name: str) -> bytes:
    return string(LIST_TABLE, TABLE) + string(LIST_SET, name)


def _element(step: Step) -> bytes:
    timeout = u64(TIMEOUT, step.timeout * 1000) if step.timeout else b""
    return nested(ELEMENT, nested(KEY, attribute(VALUE, step.key)), timeout)
