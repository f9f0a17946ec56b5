"""Addresses, ip rules and routes as they stood at one moment, to be put back: rtnetlink's own messages.

The journal undoes what we have made. This puts back what went away meanwhile: what was ours before and was taken off,
what the kernel let go of by itself (routes through an address that went, the IPv6 default route of a host that became a
router), what stood on links that were taken over. The only thing that is taken away is what router advertisements have
brought to links where they were not followed before.

What stands again by itself is not written: each is compared with what is there. Left out are the table ``local``, which
is the kernel's, and routes that it has cloned. Wire formats: linux/rtnetlink.h, linux/if_addr.h, linux/fib_rules.h.

They stay bytes, because others made them: what is put back has to have every attribute, of kernels to come too.
pyroute2 0.9.7 reads and writes what it knows: a route loses its nexthop object (RTA_NH_ID), a rule the mask of its port
(FRA_DPORT_MASK), a local segment its action. And 50,000 routes, of a routing daemon, take it 11 s, these lines 0.3 s.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.core.errors import KernelError
from gateway.kernel.clock import boottime
from gateway.kernel.nft.message import ACK, CREATE, DONE, DUMP, ERROR, REQUEST

NEW_ADDRESS, NEW_ROUTE, NEW_RULE = 20, 24, 32
KINDS = (NEW_ADDRESS, NEW_RULE, NEW_ROUTE)
"""In the order in which they are put back; the request for a dump of each is two more."""
NAMES = {NEW_ADDRESS: "address", NEW_ROUTE: "route", NEW_RULE: "ip rule"}
FAMILIES = (socket.AF_INET, socket.AF_INET6)
HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
FIXED = {NEW_ADDRESS: 8, NEW_ROUTE: 12, NEW_RULE: 12}
"""Bytes of struct ifaddrmsg, rtmsg, fib_rule_hdr."""
REPLACE, EXCL, APPEND = 0x100, 0x200, 0x800
IFA_ADDRESS, IFA_LOCAL, IFA_CACHEINFO, IFA_FLAGS, IFA_RT_PRIORITY, IFA_PROTO = 1, 2, 6, 8, 9, 11
SET_FLAGS = 0x02 | 0x10 | 0x100 | 0x200 | 0x400
"""Flags that whoever makes an address gives it: no detection of others that have it, home address, the parent of
temporary ones, no route to its prefix, joined groups."""
PERMANENT = 0x80
ANNOUNCED = b"\2"
"""IFAPROT_KERNEL_RA (Linux 5.18)."""
BY_KERNEL, BY_ADVERTISEMENT = 2, 9
"""rtm_protocol."""
RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_CACHEINFO, RTA_VIA, RTA_EXPIRES, RTA_NH_ID = 4, 5, 9, 12, 18, 23, 30
BY_NEXTHOP = frozenset((RTA_OIF, RTA_GATEWAY, RTA_MULTIPATH, RTA_VIA))
"""The kernel shows them of a route to a nexthop object, and takes only the object."""
CACHE = struct.Struct("=4I")
"""struct ifa_cacheinfo: preferred, valid, created, updated."""
FOREVER = 0xFFFFFFFF
TABLE_LOCAL = 255
CLONED = 0x200
KEPT_FLAGS = 0x2 | 0x4
"""RTNH_F_PERVASIVE and RTNH_F_ONLINK; others say how the route is at the moment."""
RULE_FLAGS = 0x2
"""FIB_RULE_INVERT, likewise."""
HERTZ = 100
"""USER_HZ, in which rta_cacheinfo counts."""
RECEIVE = 1 << 17
PATIENCE = 5.0


class Message(NamedTuple):
    kind: int
    body: bytes


def take() -> list[Message]:
    """All that stands in the network namespace of the calling thread. Raises KernelError."""
    with _socket() as sock:
        return [
            message
            for kind in KINDS
            for family in FAMILIES
            for message in _dump(sock, kind, family)
            if _wanted(message)
        ]


def save(path: Path) -> None:
    """``take``, to a file. Raises KernelError, OSError."""
    found = [(kind, body.hex()) for kind, body in take()]
    path.write_text(json.dumps({"at": boottime(), "messages": found}))


def load(path: Path) -> tuple[float, list[Message]]:
    """When it was taken, in seconds of CLOCK_BOOTTIME, and what. Raises OSError, ValueError."""
    value = json.loads(path.read_text())
    return float(value["at"]), [Message(int(kind), bytes.fromhex(body)) for kind, body in value["messages"]]


def put_back(before: Iterable[Message], elapsed: float) -> list[str]:
    """What of ``before`` is missing, with the lifetimes that are left after ``elapsed`` seconds. Returns what the
    kernel refuses, a line each. Raises KernelError where it cannot be asked."""
    wanted, failed = list(before), []
    for kind in KINDS:
        # Twice: a route may go through a gateway that a later one leads to.
        for last in (False, True):
            there = {identity(message): state(message) for message in take()}
            missing = [one for one in wanted if one.kind == kind and there.get(identity(one)) != state(one)]
            with _socket() as sock:
                for message in _ordered(missing):
                    error = _write(sock, message, elapsed)
                    if error and error != errno.EEXIST and last:
                        failed.append(f"{NAMES[kind]} {message.body.hex()}: {os.strerror(error)}")
            if not missing:
                break
    return failed


def state(message: Message) -> tuple[int, bytes, bytes]:
    """What is put back of an address that is there: flags, who made it, the metric of its route."""
    kind, body = message
    if kind != NEW_ADDRESS:
        return 0, b"", b""
    parts = dict(attributes(body[FIXED[kind] :]))
    (flags,) = struct.unpack("=I", parts.get(IFA_FLAGS, b"\0\0\0\0"))
    return flags & SET_FLAGS, parts.get(IFA_PROTO, b"\0"), parts.get(IFA_RT_PRIORITY, b"")


def take_away(before: Iterable[Message], links: Collection[int]) -> None:
    """What router advertisements have brought to these interfaces (numbers) since ``before``. Raises KernelError where
    the kernel cannot be asked."""
    known = {identity(message) for message in before}
    found = [one for one in take() if _announced(one) in links and identity(one) not in known]
    with _socket() as sock:
        # An address takes its prefix's route along.
        for message in sorted(found, key=lambda one: one.kind == NEW_ADDRESS):
            with contextlib.suppress(OSError):
                _ask(sock, message.kind + 1, ACK, clean(message, 0.0), lambda _: None)


def _announced(message: Message) -> int:
    """The interface of an address or a route that a router advertisement has made; 0 for any other."""
    kind, body = message
    if kind == NEW_RULE or body[0] != socket.AF_INET6:
        return 0
    parts = dict(attributes(body[FIXED[kind] :]))
    if kind == NEW_ADDRESS:
        passing = not struct.unpack("=I", parts.get(IFA_FLAGS, b"\0\0\0\0"))[0] & PERMANENT
        made = passing or parts.get(IFA_PROTO) == ANNOUNCED
        return int(struct.unpack_from("=I", body, 4)[0]) if made else 0
    cache = parts.get(RTA_CACHEINFO, b"")
    ends = len(cache) >= 16 and struct.unpack_from("=3Ii", cache)[3] > 0
    made = body[5] == BY_ADVERTISEMENT or (body[5] == BY_KERNEL and ends)
    return int.from_bytes(parts.get(RTA_OIF, b""), sys.byteorder) if made else 0


def identity(message: Message) -> tuple[int, bytes]:
    """Equal for what means the same, whatever its lifetime and state."""
    kind, body = message
    if kind == NEW_ADDRESS:
        family, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
        parts = dict(attributes(body[FIXED[kind] :]))
        local, peer = parts.get(IFA_LOCAL, b""), parts.get(IFA_ADDRESS, b"")
        return kind, struct.pack("=BBI", family, prefix, index) + (local or peer) + peer
    return kind, clean(message, 0.0, lifetimes=False)


def clean(message: Message, elapsed: float, *, lifetimes: bool = True) -> bytes:
    """The body as the kernel takes it again."""
    kind, body = message
    size = FIXED[kind]
    head, rest = body[:size], list(attributes(body[size:]))
    if kind == NEW_ADDRESS:
        changed = [(number, _left(value, elapsed) if number == IFA_CACHEINFO else value) for number, value in rest]
        return head + b"".join(_attribute(*one) for one in changed)
    (flags,) = struct.unpack_from("=I", head, 8)
    head = head[:8] + struct.pack("=I", flags & (KEPT_FLAGS if kind == NEW_ROUTE else RULE_FLAGS))
    if kind == NEW_RULE:
        return head + b"".join(_attribute(*one) for one in rest)
    by_object = any(number == RTA_NH_ID for number, _ in rest)
    out = []
    for number, value in rest:
        if number == RTA_CACHEINFO:
            expires = struct.unpack_from("=3Ii", value)[3] if len(value) >= 16 else 0
            if expires > 0 and lifetimes:
                out.append(_attribute(RTA_EXPIRES, struct.pack("=I", max(1, int(expires / HERTZ - elapsed)))))
        elif number == RTA_MULTIPATH and not by_object:
            out.append(_attribute(number, _hops(value)))
        elif not (by_object and number in BY_NEXTHOP):
            out.append(_attribute(number, value))
    return head + b"".join(out)


def _left(cache: bytes, elapsed: float) -> bytes:
    preferred, valid, created, updated = CACHE.unpack_from(cache)
    preferred, valid = (
        one if one in (0, FOREVER) else max(1, one - int(elapsed)) for one in (preferred, valid)
    )  # fmt: skip
    return CACHE.pack(preferred, valid, created, updated)


def _hops(value: bytes) -> bytes:
    """struct rtnexthop, one after another, without the flags that say how they are."""
    out, at = bytearray(value), 0
    while len(out) - at >= 8:
        (size,) = struct.unpack_from("=H", out, at)
        if size < 8:
            break
        out[at + 2] &= KEPT_FLAGS
        at += (size + 3) & ~3
    return bytes(out)


def _wanted(message: Message) -> bool:
    if message.kind != NEW_ROUTE:
        return True
    (flags,) = struct.unpack_from("=I", message.body, 8)
    return message.body[4] != TABLE_LOCAL and not flags & CLONED


def _ordered(messages: list[Message]) -> list[Message]:
    """As they have to be written to stand in the order in which they stood: the kernel lists IPv6 addresses of an
    interface from the last one to the first."""
    four = [one for one in messages if one.kind != NEW_ADDRESS or one.body[0] == socket.AF_INET]
    return sorted(four, key=_order) + [one for one in reversed(messages) if one not in four]


def _order(message: Message) -> tuple[bool, int]:
    """Routes on the link first, then narrow ones."""
    if message.kind != NEW_ROUTE:
        return False, 0
    parts = dict(attributes(message.body[FIXED[NEW_ROUTE] :]))
    return bool(parts.keys() & BY_NEXTHOP - {RTA_OIF}), -message.body[1]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Ends where a length is wrong."""
    while len(data) >= ATTRIBUTE.size:
        size, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= size <= len(data):
            return
        yield kind, data[ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]


def _attribute(kind: int, value: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _socket() -> socket.socket:
    """Raises KernelError."""
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        sock.settimeout(PATIENCE)
        sock.bind((0, 0))
        return sock
    except OSError as error:
        raise KernelError("open rtnetlink", error.errno or errno.EIO) from error


def _ask(sock: socket.socket, kind: int, flags: int, body: bytes, heard: Callable[[Message], None]) -> int:
    """The kernel's errno, 0 for none. Raises OSError."""
    sock.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body)
    while True:
        data = sock.recv(RECEIVE)
        at = 0
        while len(data) - at >= HEADER.size:
            size, kind, _, _, _ = HEADER.unpack_from(data, at)
            if size < HEADER.size:
                return errno.EBADMSG
            payload = data[at + HEADER.size : at + size]
            if kind == ERROR:
                return -int(struct.unpack_from("=i", payload)[0])
            if kind == DONE:
                return 0
            heard(Message(kind, payload))
            at += (size + 3) & ~3


def _dump(sock: socket.socket, kind: int, family: int) -> list[Message]:
    found: list[Message] = []
    try:
        error = _ask(sock, kind + 2, DUMP, bytes([family]).ljust(FIXED[kind], b"\0"), found.append)
    except OSError as failure:
        error = failure.errno or errno.EIO
    if error and error not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):  # a kernel without IPv6, or without rules
        raise KernelError(f"list every {NAMES[kind]}", error)
    return [message for message in found if message.kind == kind]


def _write(sock: socket.socket, message: Message, elapsed: float) -> int:
    # IPv4 routes of one prefix stand in the order in which they came; of IPv6 APPEND would make one with several ways.
    route = APPEND if message.body[0] == socket.AF_INET else 0
    more = {NEW_ADDRESS: REPLACE, NEW_RULE: EXCL, NEW_ROUTE: route}[message.kind]
    try:
        return _ask(sock, message.kind, ACK | CREATE | more, clean(message, elapsed), lambda _: None)
    except OSError as error:
        return error.errno or errno.EIO
