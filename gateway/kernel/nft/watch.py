"""Whether a table without an owner still holds all that was put into it: anybody may flush it.

The kernel's generation number says at once that nobody has changed anything since the last look, in any table. It is
asked for, and not listened to: with a listener the kernel would write a message for each element of a large set.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator

from gateway.core.errors import KernelError
from gateway.kernel.nft.element import INET
from gateway.kernel.nft.message import (
    DONE,
    DUMP,
    ERROR,
    NETLINK_NETFILTER,
    NFTABLES,
    REQUEST,
    answers,
    attributes,
    message,
    pairs,
    string,
)

GET_TABLE, GET_RULE, GET_ELEMENTS, GET_GENERATION = (NFTABLES << 8 | number for number in (1, 7, 13, 16))
NAME, TABLE_HANDLE = 1, 4
"""The name is number 1 of every message: NFTA_TABLE_NAME, NFTA_RULE_TABLE, NFTA_SET_ELEM_LIST_TABLE."""
CHAIN, RULE_HANDLE = 2, 3
SET, ELEMENTS, ELEMENT_KEY, VALUE = 2, 3, 1, 1
GENERATION = 1
RECEIVE = 1 << 17
"""Bytes of the largest datagram of a dump (the kernel's own bound is 32 KB)."""
PATIENCE = 5.0
"""Seconds that the kernel may take; it answers within the write."""
TRIES = 4
"""Looks until one is not disturbed by somebody's change."""

Parts = frozenset[tuple[str, bytes, bytes]]
"""The table's handle, rules (chain, handle), elements (set, key)."""


class Watch:
    """Of table ``inet NAME`` with these sets, in the network namespace of the calling thread. Raises KernelError."""

    def __init__(self, table: str, sets: tuple[str, ...]) -> None:
        self._table, self._sets = table, sets
        self._sequence = 0
        self._generation = b""
        self._known: Parts = frozenset()
        try:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            self._socket.settimeout(PATIENCE)
            self._socket.bind((0, 0))
        except OSError as error:
            raise KernelError("nft watch", error.errno or errno.EIO) from error

    def put(self, work: Callable[[], None]) -> bool:
        """``work()`` changes the table, in one transaction: what is there then is what has to be. False where others
        changed rules meanwhile: they may have taken some of it away again, and what had to be before still has to be.
        Raises KernelError, and what ``work`` raises."""
        before = self._now()
        work()
        generation, parts, _ = self._look()
        if generation != _next(before):
            return False
        self._generation, self._known = generation, parts
        return True

    def whole(self) -> bool:
        """Nothing of what was remembered is gone; what others have added is their business. Raises KernelError."""
        if self._now() == self._generation:
            return True
        generation, parts, calm = self._look()
        if self._known - parts:
            # Where rules change meanwhile the kernel may have left some out: the next look will tell.
            return not calm
        self._generation = generation
        return True

    def close(self) -> None:
        self._socket.close()

    def _look(self) -> tuple[bytes, Parts, bool]:
        """Generation, what is there, and whether nobody changed rules meanwhile."""
        for _ in range(TRIES):
            before, parts = self._now(), frozenset(self._parts())
            if before == self._now():
                return before, parts, True
        return before, parts, False

    def _now(self) -> bytes:
        return b"".join(attributes(body)[GENERATION] for body in self._asked(GET_GENERATION, b""))

    def _parts(self) -> Iterator[tuple[str, bytes, bytes]]:
        name = string(NAME, self._table)
        for body in self._asked(GET_TABLE, name):
            yield "table", b"", attributes(body)[TABLE_HANDLE]
        for body in self._asked(GET_RULE, name, DUMP):
            fields = attributes(body)
            yield "rule", fields[CHAIN], fields[RULE_HANDLE]
        for one in self._sets:
            for body in self._asked(GET_ELEMENTS, name + string(SET, one), DUMP):
                for _, item in pairs(attributes(body).get(ELEMENTS, b"")):
                    yield "element", one.encode(), attributes(attributes(item)[ELEMENT_KEY])[VALUE]

    def _asked(self, kind: int, payload: bytes, flags: int = 0) -> list[bytes]:
        """Attributes of each message of the answer; none where there is no such thing."""
        self._sequence += 1
        found: list[bytes] = []
        try:
            self._socket.send(message(kind, REQUEST | flags, self._sequence, INET, payload))
            while True:
                for answer in answers(self._socket.recv(RECEIVE)):
                    if answer.sequence != self._sequence:
                        continue
                    if answer.kind in (DONE, ERROR):
                        if answer.errno not in (0, errno.ENOENT, errno.EINTR):
                            raise KernelError("nft watch", answer.errno or errno.EPROTO)
                        return found
                    found.append(answer.payload[4:])
                    if not flags:
                        return found
        except OSError as error:
            raise KernelError("nft watch", error.errno or errno.EIO) from error
        except (ValueError, KeyError) as error:
            raise KernelError("nft watch", errno.EBADMSG, str(error)) from error


def _next(generation: bytes) -> bytes:
    """Each transaction of a network namespace counts as one; 0 is left out (nf_tables_commit)."""
    return (int.from_bytes(generation, "big") % 0xFFFFFFFF + 1).to_bytes(len(generation), "big")
