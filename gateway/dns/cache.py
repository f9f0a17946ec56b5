"""Answers as they came over the wire, with their TTLs counted down where they stand. Pure.

No message is parsed on a hit: the key is the query itself behind its id, its name in lower case, so that two clients
who ask the same (flags and EDNS size included) share an entry. Holds at most ``capacity`` answers, least recently used
out first. Only NOERROR and NXDOMAIN are kept (RFC 2308 section 7: failures are not ours to remember).
"""

from __future__ import annotations

from collections import OrderedDict

from gateway.core.address import IP
from gateway.core.errors import PeerError
from gateway.dns import message

CAPACITY = 1024
LONGEST = 4096
"""Bytes of a query or a kept answer: ``capacity`` times this bounds the memory."""

Key = tuple[object, bytes]


def key_of(query: bytes) -> bytes | None:
    """What identifies ``query``; None where its answer may not be shared: not one plain question, or records beside one
    bare EDNS record."""
    # counts: 1 question, no answer, no authority, 0 or 1 additional; opcode QUERY, no response
    if len(query) > LONGEST or query[4:11] != b"\0\1\0\0\0\0\0" or query[2] & 0xF8:
        return None
    end = query.find(b"\0", message.HEADER)
    rest = query[end + 1 :]
    # A bare EDNS record: root, type 41, ..., no options (RFC 6891 section 6.1.2).
    if end < 0 or (
        len(rest) != 4 if not query[11] else len(rest) != 15 or rest[4:7] != b"\0\0\x29" or rest[13:] != b"\0\0"
    ):
        return None
    # Only the name: a type may well be a byte that is a capital letter (HTTPS is 65).
    return query[2 : message.HEADER] + query[message.HEADER : end].lower() + query[end:]


class Entry:
    """One kept answer."""

    __slots__ = ("_age", "_head", "_offsets", "_tail", "_ttl", "addresses", "born", "expires", "limit", "name", "size",
                 "split", "targets", "told")  # fmt: skip

    def __init__(self, answer: bytes, split: int, ttl: int, now: float, limit: int, forever: bool) -> None:
        offsets = tuple(record.ttl_at - split for record in message.records(answer) if record.type != message.OPT)
        self.split = split
        self.limit = limit
        """Bytes that the asking client takes over UDP."""
        self.size = len(answer)
        self.name, self.addresses, self.targets = message.lesson(answer)
        self.told: tuple[IP | None, int] = (None, -1)
        """Whom this answer was told last, and how old it was then: for the router."""
        self.born = now
        self.expires = float("inf") if forever else now + ttl
        self._offsets = offsets
        self._ttl = ttl
        self._age = 0
        self._head = answer[2 : message.HEADER]
        self._tail = message.with_ttl(answer[split:], offsets, ttl)

    def age(self, now: float) -> int:
        """Whole seconds."""
        return int(now - self.born)

    def left(self, now: float) -> int:
        """Seconds that the answer is good for, as its records say."""
        return max(self._ttl - self.age(now), 0)

    def due(self, now: float) -> float:
        """When the TTLs are next counted down, or the answer ends."""
        return self.born + self.age(now) + 1

    def answer(self, query: bytes, now: float) -> bytes:
        """For ``query``, whose key found this: its id and its spelling of the name."""
        age = self.age(now)
        if age != self._age:
            self._age = age
            self._tail = message.with_ttl(self._tail, self._offsets, max(self._ttl - age, 0))
        return query[:2] + self._head + query[message.HEADER : self.split] + self._tail


class Cache:
    """``disable_expire`` keeps answers until they are crowded out, at TTL 0 once their time is over. ``now`` is any
    steady clock in seconds."""

    def __init__(self, capacity: int = CAPACITY, *, disable_expire: bool = False) -> None:
        self.capacity = max(capacity, CAPACITY)
        self._forever = disable_expire
        self._entries: OrderedDict[Key, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key, now: float) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if now >= entry.expires:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return entry

    def put(self, key: Key, query: bytes, answer: bytes, now: float, ttl: int | None = None) -> Entry | None:
        """Keep ``answer`` under ``key`` for its lifetime, or for ``ttl`` seconds; None where it is not to be kept: a
        failure, truncated, malformed, not of this question, without a lifetime."""
        try:
            word = message.flags(answer)
            if word & message.TC or word & 15 not in (message.NOERROR, message.NXDOMAIN) or len(answer) > LONGEST:
                return None
            asked = message.question(query)
            if message.question(answer) != asked:
                return None
            seconds = message.lifetime(answer, message.records(answer)) if ttl is None else ttl
            if seconds <= 0:
                return None
            limit = message.payload_size(query)
            entry = Entry(answer, asked.end - 4, seconds, now, limit, self._forever)
        except PeerError:
            return None
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return entry

    def clear(self) -> None:
        self._entries.clear()
