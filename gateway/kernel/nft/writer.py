"""The one writer of the owned table ``inet gateway``: one netlink socket, rules by text, elements raw.

The table belongs to that socket. It goes when the last copy of its descriptor is closed, so that nothing here may be
inherited by a child; and every other writer, this process included, is refused.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gateway.core.errors import KernelError
from gateway.kernel.conntrack import NOTHING, Count
from gateway.kernel.nft import diff, element
from gateway.kernel.nft.library import OWNER, Library, folder, owners
from gateway.kernel.nft.message import (
    DONE,
    DUMP,
    NFTABLES,
    REQUEST,
    Answer,
    answers,
    attributes,
    message,
    pairs,
    string,
)
from gateway.kernel.nft.steer_render import CHAINS, TABLE, Objects, fixed, objects
from gateway.kernel.plan import Capture, LearnedChange, Steering, Verdict

log = logging.getLogger(__name__)

NEW_RULE, GET_RULE, NEW_OBJECT, GET_OBJECT = (NFTABLES << 8 | number for number in (6, 7, 18, 19))
RULE_TABLE, RULE_CHAIN, RULE_EXPRESSIONS, EXPRESSION_NAME, EXPRESSION_DATA = 1, 2, 4, 1, 2
OBJECT_TABLE, OBJECT_NAME, OBJECT_DATA = 1, 2, 4
COUNTER_BYTES, COUNTER_PACKETS = 1, 2
COUNTING = ("prerouting", "sent")
"""Chains of the skeleton whose rules count the packets of direct flows, but for the first of each."""
RECEIVE = 65536
PATIENCE = 5000
"""Milliseconds that an acknowledgement may take; the kernel answers within the write."""


class Writer:
    """Makes the table on the first ``apply``. Not for use by several threads. Raises KernelError from the constructor
    where libnftables is missing. ``owned``: whether the kernel knows ``flags owner`` (Linux 5.12); None asks it."""

    def __init__(self, owned: bool | None = None) -> None:
        self._library = Library(first=True)
        self.owned = owners(self._library) if owned is None else owned
        self._objects: Objects | None = None
        self._generation = 0
        """In force."""
        self._last = 0
        """That was tried: what a refused one has left behind does not meet the next."""
        self._sequence = 0

    def apply(self, steering: Steering, capture: Capture, changes: Sequence[LearnedChange] = ()) -> None:
        """To this content, which is in force from one moment on. ``changes`` are to the learned sets as they will be
        afterwards; the others keep what they hold. Raises KernelError, and the table is then as it was; ValueError on a
        bad interface name."""
        self._last += 1
        old, new = self._objects or Objects(), objects(steering, capture, self._last)
        skeleton = ""
        if self._objects is None:
            self._remove_leftover()
            skeleton = (folder() / "steer.nft").read_text()
            if not self.owned:
                skeleton = skeleton.replace(OWNER, "")
        self._run((skeleton, *diff.prepare(old, new)))
        try:
            self._run(diff.switch(old, new, changes))
        except KernelError:
            self._remove((f"delete table {TABLE}",) if self._objects is None else diff.clear(new, old))
            raise
        self._objects, self._generation = new, self._last
        self._remove(diff.clear(old, new))

    def capture(self, steering: Steering, capture: Capture) -> None:
        """After ``apply`` of the same ``steering``: other rules of what is looked at, and nothing else. Raises
        KernelError, and the table is then as it was; ValueError on a bad interface name."""
        if self._objects is None or self.closed:
            raise KernelError("nft rules", errno.ENOENT, "there is no table")
        new = fixed(steering, capture, self._generation)
        self._run(diff.fixed(self._objects.fixed, new))
        self._objects = replace(self._objects, fixed=new)

    def elements(self, changes: Iterable[LearnedChange]) -> list[LearnedChange]:
        """Change learned sets, several changes of one address as one. Returns those for which a set had no room: the
        address is then in no set of that profile. Raises KernelError. Transactions of 256 changes; those before the
        refused one stand."""
        found = element.collapse(changes)
        full: set[tuple[int, int, Verdict | None]] = set()
        refused: list[LearnedChange] = []
        for start in range(0, len(found), element.CHUNK):
            refused += self._fit(found[start : start + element.CHUNK], full)
        return refused

    def _fit(self, changes: Sequence[LearnedChange], full: set[tuple[int, int, Verdict | None]]) -> list[LearnedChange]:
        """One transaction; where a set is full, as many as it takes to find one that has no room. Each that fails takes
        milliseconds, so what else is new in one of the sets of ``full`` is not tried."""
        refused: list[LearnedChange] = []
        rows: list[LearnedChange] = []
        for change in changes:
            if change.new is not change.old and _set(change) in full:
                refused.append(change)
                change = change._replace(new=None)
            if change.old is not None or change.new is not None:
                rows.append(change)
        try:
            self.steps([element.steps(change) for change in rows])
        except KernelError as error:
            if error.errno != errno.ENFILE:
                raise
        else:
            return refused
        if len(changes) > 1:
            half = len(changes) // 2
            return self._fit(changes[:half], full) + self._fit(changes[half:], full)
        (change,) = changes
        if change.new is None or refused:
            return refused  # the old one is gone already: to add it before it is deleted was too much
        if change.old is None:
            full.add(_set(change))
            return [change]
        return self._fit([change._replace(new=None)], full) + self._fit([change._replace(old=None)], full)

    def steps(self, rows: Sequence[Sequence[element.Step]]) -> None:
        """Each row is done in its order; keys of different rows are distinct. Raises KernelError."""
        if self._objects is None or self.closed:
            raise KernelError("nft elements", errno.ENOENT, "there is no table")
        for start in range(0, len(rows), element.CHUNK):
            datagram, self._sequence = element.batch(rows[start : start + element.CHUNK], self._sequence + 1)
            self._send(datagram)

    def _send(self, datagram: bytes) -> None:
        fd = self._library.fd
        try:
            if os.write(fd, datagram) != len(datagram):
                raise KernelError("nft elements", errno.EMSGSIZE)
            self._acknowledged(fd)
        except OSError as error:
            raise KernelError("nft elements", error.errno or errno.EIO) from error
        except ValueError as error:
            raise KernelError("nft elements", errno.EBADMSG, str(error)) from error

    def counters(self) -> dict[Verdict, Count]:
        """Flows (as packets), and bytes of their first packets, by verdict. Raises KernelError."""
        found: dict[str, Count] = {}
        for answer in self._dump(GET_OBJECT, string(OBJECT_TABLE, element.TABLE)):
            if answer.kind == NEW_OBJECT:
                fields = attributes(answer.payload[4:])
                found[fields[OBJECT_NAME].rstrip(b"\0").decode()] = _count(fields[OBJECT_DATA])
        return {verdict: found.get(name, NOTHING) for verdict, name in CHAINS.items()}

    def carried(self) -> Count:
        """Packets and bytes of direct flows, without the first packet of each. Raises KernelError."""
        found = NOTHING
        for chain in COUNTING:
            for answer in self._dump(GET_RULE, string(RULE_TABLE, element.TABLE) + string(RULE_CHAIN, chain)):
                if answer.kind == NEW_RULE:
                    for _, one in pairs(attributes(answer.payload[4:]).get(RULE_EXPRESSIONS, b"")):
                        expression = attributes(one)
                        if expression[EXPRESSION_NAME] == b"counter\0":
                            found = found.plus(_count(expression[EXPRESSION_DATA]))
        return found

    def _dump(self, kind: int, wanted: bytes) -> list[Answer]:
        """Raises KernelError."""
        if self._objects is None or self.closed:
            raise KernelError("nft counters", errno.ENOENT, "there is no table")
        self._sequence += 1
        found: list[Answer] = []
        try:
            os.write(self._library.fd, message(kind, REQUEST | DUMP, self._sequence, element.INET, wanted))
            while True:
                self._wait("nft counters")
                for answer in answers(os.read(self._library.fd, RECEIVE)):
                    if answer.errno:
                        raise KernelError("nft counters", answer.errno)
                    if answer.kind == DONE:
                        return found
                    found.append(answer)
        except OSError as error:
            raise KernelError("nft counters", error.errno or errno.EIO) from error
        except (ValueError, KeyError) as error:
            raise KernelError("nft counters", errno.EBADMSG, str(error)) from error

    def _wait(self, op: str) -> select.poll:
        poll = select.poll()
        poll.register(self._library.fd, select.POLLIN)
        if not poll.poll(PATIENCE):
            raise KernelError(op, errno.ETIMEDOUT)
        return poll

    @property
    def fd(self) -> int:
        """Its socket; whoever has a copy keeps the table alive. -1 when closed."""
        return self._library.fd

    @property
    def closed(self) -> bool:
        return self._library.fd < 0

    def close(self) -> None:
        """The table goes, where it is owned. Any number of times."""
        self._library.close()
        self._objects = None

    def _run(self, commands: Iterable[str]) -> None:
        """As one transaction. Raises KernelError."""
        if text := "\n".join(commands):
            self._library.run(f"{text}\n")

    def _remove(self, commands: Iterable[str]) -> None:
        """What nothing leads to; where it cannot go it does no harm."""
        try:
            self._run(commands)
        except KernelError as error:
            log.warning("rules that are in force no more stay in the table: %s", error)

    def _remove_leftover(self) -> None:
        # An ownerless table of this name can only be taken away by its plain name; one with an owner is refused.
        try:
            self._library.run(f"add table {TABLE}\ndelete table {TABLE}\n")
        except KernelError as error:
            raise KernelError("nft", errno.EBUSY, f"table {TABLE} belongs to another process: {error}") from None

    def _acknowledged(self, fd: int) -> None:
        poll = self._wait("nft elements")
        refused, acknowledged = 0, False
        # All answers are queued by now; what is not read here would confuse the library.
        while poll.poll(0):
            for answer in answers(os.read(fd, RECEIVE)):
                if answer.sequence == self._sequence and answer.errno == 0:
                    acknowledged = True
                refused = refused or answer.errno or 0
        if refused or not acknowledged:
            raise KernelError("nft elements", refused or errno.EPROTO)


def _set(change: LearnedChange) -> tuple[int, int, Verdict | None]:
    return change.profile, change.family, change.new


def _count(data: bytes) -> Count:
    values = attributes(data)
    return Count(*(int.from_bytes(values[kind], "big") for kind in (COUNTER_PACKETS, COUNTER_BYTES)))
