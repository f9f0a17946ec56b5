"""Single questions to netlink, each answered at once: how an address is reached, and who its neighbour is.

For the moment in which a flow enters. Wire formats: linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import NamedTuple

from gateway.core.address import IP
from gateway.core.errors import KernelError

NETLINK_ROUTE = 0
RTM_GETROUTE = 26
RTM_GETNEIGH = 30
RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_VIA = 18
NDA_DST = 1
NDA_LLADDR = 2
NUD_FAILED = 0x20
RTN_LOCAL = 2
NLM_F_REQUEST = 1
NLMSG_ERROR = 2
HEADER = struct.Struct("=IHHII")
ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg; its eighth byte is the type."""
NEIGHBOUR = struct.Struct("=BBHiHBB")
"""struct ndmsg: family, padding, interface, state, flags, type."""
RECEIVE = 8192


class Lookup:
    """One netlink socket that does not wait. Raises KernelError where it is refused. Not for several threads."""

    def __init__(self, protocol: int) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
            self._socket.bind((0, 0))
        except OSError as error:
            raise KernelError(f"open netlink {protocol}", error.errno or errno.EIO) from error
        self._sequence = 0

    def close(self) -> None:
        """Any number of times."""
        self._socket.close()

    def ask(self, kind: int, body: bytes) -> bytes | None:
        """The one answer to one request, without its header; None for an error (there is no such thing). Raises
        OSError."""
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST, self._sequence, 0) + body)
        for _ in range(8):
            # The kernel answers inside send(2); what is older than the question is skipped.
            data = self._socket.recv(RECEIVE, socket.MSG_DONTWAIT)
            if len(data) < HEADER.size:
                continue
            length, got, _flags, sequence, _pid = HEADER.unpack_from(data)
            if sequence == self._sequence:
                return None if got == NLMSG_ERROR else data[HEADER.size : length]
        return None


class Way(NamedTuple):
    """How an address is reached: it is ours (``local``), or behind ``interface``, a number, ``gateway`` first."""

    local: bool
    interface: int
    gateway: IP | None


def route_to(lookup: Lookup, ip: IP) -> Way | None:
    """None where there is no route. Raises OSError."""
    body = ROUTE.pack(_family(ip), len(ip.packed) * 8, 0, 0, 0, 0, 0, 0, 0) + _attribute(RTA_DST, ip.packed)
    answer = lookup.ask(RTM_GETROUTE, body)
    if answer is None or len(answer) < ROUTE.size:
        return None
    found = dict(_attributes(answer[ROUTE.size :]))
    index = int.from_bytes(found.get(RTA_OIF, b""), sys.byteorder)
    # RTA_VIA: two bytes of the address's family before it (an IPv4 route through an IPv6 router).
    gateway = found.get(RTA_GATEWAY) or found.get(RTA_VIA, b"")[2:]
    return Way(answer[7] == RTN_LOCAL, index, _address(gateway))


def neighbour(lookup: Lookup, ip: IP, index: int) -> bytes | None:
    """Link-layer address of ``ip`` on interface number ``index``, b"" where its links have none; None where it is no
    neighbour there (Linux 5.0). Raises OSError."""
    body = NEIGHBOUR.pack(_family(ip), 0, 0, index, 0, 0, 0) + _attribute(NDA_DST, ip.packed)
    answer = lookup.ask(RTM_GETNEIGH, body)
    if answer is None or len(answer) < NEIGHBOUR.size or NEIGHBOUR.unpack_from(answer)[4] & NUD_FAILED:
        return None
    return dict(_attributes(answer[NEIGHBOUR.size :])).get(NDA_LLADDR, b"")


def _family(ip: IP) -> int:
    return socket.AF_INET if isinstance(ip, IPv4Address) else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            return
        yield kind, data[4:length]
        data = data[(length + 3) & ~3 :]


def _address(packed: bytes) -> IP | None:
    return ip_address(packed) if len(packed) in (4, 16) else None
