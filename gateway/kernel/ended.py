"""Hears of flows that end: ctnetlink's DESTROY events, those of one mark alone, with their last counters.

The mark is looked at by a filter of the socket, so that what others' flows do wakes nobody. While somebody hears, the
kernel writes a message for each flow that ends (some microseconds); a flow that began before anybody heard has none
where ``nf_conntrack_events`` is 2, the default.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Callable

from gateway.core.errors import KernelError
from gateway.kernel.conntrack import DELETE, MARK, Counted, parse
from gateway.kernel.nft.message import NETLINK_NETFILTER, answers, attributes

SOL_NETLINK, ADD_MEMBERSHIP = 270, 1
DESTROYED = 3
"""enum nfnetlink_groups: NFNLGRP_CONNTRACK_DESTROY."""
ATTACH_FILTER = 26
RECEIVE_FORCE = 33
ROOM = 1 << 22
"""Bytes of events that wait: some ten thousand flows that end at once."""
BATCH = 256
"""Events taken in one go."""
HEAD = 20
"""Bytes before the attributes of a message."""
NLATTR = 0xFFFFF000 + 12
"""SKF_AD_OFF + SKF_AD_NLATTR (linux/filter.h): A = where an attribute stands, from A on and with the number X; or 0."""


def only(mark: int, mask: int) -> bytes:
    """Classic BPF that lets pass what has ``mark`` under ``mask``."""
    code = (
        (0x00, 0, 0, HEAD),  # A = HEAD
        (0x01, 0, 0, MARK),  # X = MARK
        (0x30, 0, 0, NLATTR),
        (0x15, 4, 0, 0),  # none: a mark of 0 is not written
        (0x07, 0, 0, 0),  # X = A
        (0x40, 0, 0, 4),  # A = the attribute's value
        (0x54, 0, 0, mask),
        (0x15, 1, 0, mark),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 0xFFFFFFFF),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in code)


class Ended:
    """Calls ``heard`` of each flow that ends with ``mark`` under ``mask`` when ``read`` is called, which ``fd`` asks
    for. Raises KernelError."""

    def __init__(self, mark: int, mask: int, heard: Callable[[Counted], None]) -> None:
        self._heard = heard
        self.lost = 0
        """Times that events were lost because they came faster than they were read."""
        code = only(mark, mask)
        held = ctypes.create_string_buffer(code, len(code))
        program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        except OSError as error:
            raise KernelError("conntrack events", error.errno or 0) from error
        try:
            self._sock.setblocking(False)
            self._sock.setsockopt(socket.SOL_SOCKET, RECEIVE_FORCE, ROOM)
            self._sock.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, program)
            self._sock.bind((0, 0))
            self._sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, DESTROYED)
        except OSError as error:
            self._sock.close()
            raise KernelError("conntrack events", error.errno or 0) from error

    @property
    def fd(self) -> int:
        return self._sock.fileno()

    def read(self) -> bool:
        """Whether more may be there. Never waits, never raises."""
        for _ in range(BATCH):
            try:
                data = self._sock.recv(1 << 16)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    self.lost += 1
                    continue
                return False
            for answer in answers(data):
                if answer.kind == DELETE and (found := parse(attributes(answer.payload[4:]))) is not None:
                    self._heard(found)
        return True

    def close(self) -> None:
        """Any number of times."""
        self._sock.close()
