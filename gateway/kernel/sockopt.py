"""Socket options by their kernel names: transparent sockets, original destinations, marks, batches.

Numbers from linux/in.h, in6.h, udp.h, netfilter_ipv4.h (Python's socket module lacks them).
"""

from __future__ import annotations

import _socket
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from gateway.core.address import IP, Address

IP_TRANSPARENT = 19
IP_RECVORIGDSTADDR = 20
IPV6_RECVORIGDSTADDR = 74
IPV6_TRANSPARENT = 75
SO_ORIGINAL_DST = 80
UDP_SEGMENT = 103
UDP_GRO = 104
IP_BIND_ADDRESS_NO_PORT = 24
KEEP_ALIVE = 600

_INET, _INET6, _STREAM = int(socket.AF_INET), int(socket.AF_INET6), int(socket.SOCK_STREAM)
_NEW = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class Socket(socket.socket):
    """One without the notes that the standard library keeps for ``makefile``: a flow makes and closes two of them, and
    that would cost it as much as its rules."""

    __slots__ = ()
    __init__ = _socket.socket.__init__
    close = _socket.socket.close
    family = _socket.socket.family  # type: ignore[assignment]

    def __exit__(self, *error: object) -> None:
        self.close()


def connection(family: int, protocol: int = 0) -> socket.socket:
    """A new non-blocking TCP socket, not connected yet. Raises OSError."""
    sock: socket.socket = Socket(family, _NEW, protocol)
    return sock


def accept(listener: socket.socket) -> tuple[socket.socket, Any]:
    """The next connection as a non-blocking socket, and who began it. ``socket.accept`` and ``setblocking`` take half
    as long again: they ask the listener's family and kind through enumerations. Raises OSError, BlockingIOError."""
    fd, name = listener._accept()  # type: ignore[attr-defined]
    sock = Socket(_INET6 if len(name) == 4 else _INET, _STREAM, 0, fd)
    sock.setblocking(False)
    return sock, name


def family_of(ip: IP) -> socket.AddressFamily:
    return socket.AF_INET if isinstance(ip, IPv4Address) else socket.AF_INET6


def sockaddr(ip: IP, port: int) -> tuple[str, int]:
    return (str(ip), port)


def address_of(name: tuple[str, int] | tuple[str, int, int, int]) -> Address:
    """What getsockname, getpeername or recvfrom gave, unmapped."""
    return Address.of(name[0], name[1])


def parse_sockaddr(data: bytes) -> Address:
    """A struct sockaddr_in or sockaddr_in6 from ancillary data. Raises ValueError on any other family."""
    (family,) = struct.unpack_from("=H", data)
    (port,) = struct.unpack_from("!H", data, 2)
    if family == socket.AF_INET and len(data) >= 8:
        return Address(IPv4Address(data[4:8]), port)
    if family == socket.AF_INET6 and len(data) >= 24:
        return Address.of(IPv6Address(data[8:24]), port)
    raise ValueError(f"address family {family}")


def set_mark(sock: socket.socket, mark: int) -> None:
    """SO_MARK; 0 leaves the socket alone."""
    if mark:
        # As bytes: Python takes an int for a signed one, and a mark may have bit 31.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))


def set_keep_alive(sock: socket.socket, idle: int = KEEP_ALIVE) -> None:
    """Let the kernel find out whether a peer is dead that has been silent for ``idle`` seconds; then every 75 (both
    sing-box's figures, the second one the kernel's own)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)


def set_transparent(sock: socket.socket) -> None:
    """Bind to and answer from foreign addresses. Raises PermissionError without CAP_NET_ADMIN."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def original_destination(sock: socket.socket) -> Address:
    """Destination before an nft ``redirect`` (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST). Raises OSError where the
    connection was not redirected."""
    if sock.family == socket.AF_INET:
        return parse_sockaddr(sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16))
    try:
        return parse_sockaddr(sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28))
    except OSError:
        # A dual-stack listener: the connection itself may be IPv4.
        return parse_sockaddr(sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16))


def is_local(ip: IP) -> bool:
    """Whether ``ip`` is an address of this host: what goes there has it as its source too. (Binding to it says nothing
    where ip_nonlocal_bind is set.)"""
    if ip.is_loopback:
        return True
    try:
        with socket.socket(family_of(ip), socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(sockaddr(ip, 9))
            return address_of(sock.getsockname()).ip == ip
    except OSError:
        return False
