"""The sockets of DHCP port 68: a packet socket while there is no address, a UDP socket while there is one.

AF_PACKET is before netfilter, rp_filter and routing, so it works on an interface that has nothing yet. Its filter is
attached before it is bound (no foreign packet is ever queued) and locked. While an address is held, UDP port 68 of that
address is held too: else the kernel would answer the server's unicast with an ICMP port unreachable.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address

from gateway.core.errors import PeerError
from gateway.kernel.sockopt import set_mark
from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.machine import Listen, Send

log = logging.getLogger(__name__)

ETH_P_IP = 0x0800
SOL_PACKET = 263
PACKET_AUXDATA = 8
PACKET_IGNORE_OUTGOING = 23
SO_ATTACH_FILTER = 26
SO_DETACH_FILTER = 27
SO_LOCK_FILTER = 44
IP_FREEBIND = 15
TP_STATUS_CSUMNOTREADY = 0x08
TP_STATUS_VLAN_VALID = 0x10
LIMIT = 4096
"""Largest packet read; option 57 told the server 1472."""
BATCH = 16
"""Packets read a wake-up, so that a flood does not hold the loop."""

_AUX = struct.Struct("=IIIHHHH")
_INSTRUCTION = struct.Struct("=HBBI")
# Classic BPF over the IPv4 header (a SOCK_DGRAM packet socket): UDP, no fragment, destination port 68.
ONLY_DHCP = (
    (0x30, 0, 0, 9),  # ldb [9]
    (0x15, 0, 6, 17),  # jeq udp
    (0x28, 0, 0, 6),  # ldh [6]
    (0x45, 4, 0, 0x3FFF),  # jset more fragments or offset
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)
    (0x48, 0, 0, 2),  # ldh [x+2]
    (0x15, 0, 1, 68),  # jeq 68
    (0x06, 0, 0, 0x40000),  # ret all
    (0x06, 0, 0, 0),  # ret nothing
)
_NOTHING = ((0x06, 0, 0, 0),)


def attach(sock: socket.socket, program: Iterable[tuple[int, int, int, int]]) -> None:
    """SO_ATTACH_FILTER with a struct sock_fprog."""
    code = b"".join(_INSTRUCTION.pack(*line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, head)


class Port:
    """What ``Listen`` and ``Send`` mean on ``interface``. ``received(payload, source)`` is called from the loop.
    ``mark`` is the SO_MARK of the UDP socket. Socket errors are logged, a lasting one once, and count as loss: the
    interface may be gone, the port another program's."""

    def __init__(self, interface: str, mark: int, received: Callable[[bytes, IPv4Address], None]) -> None:
        self.interface = interface
        self.mark = mark
        self._received = received
        self._loop = asyncio.get_running_loop()
        self._raw: socket.socket | None = None
        self._udp: socket.socket | None = None
        self._address: IPv4Address | None = None
        self._said = ""

    def listen(self, want: Listen) -> None:
        try:
            if want.udp != self._address or (want.udp is not None and self._udp is None):
                self._udp = self._close(self._udp)
                self._udp = self._open_udp(want.udp) if want.udp is not None else None
                self._address = want.udp
            if self._udp is not None:
                self._hear(self._udp, want.deaf)
            if want.raw and self._raw is None:
                self._raw = self._open_raw()
            elif not want.raw:
                self._raw = self._close(self._raw)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            self._failed("port 68 is another program's, waiting for it" if taken else f"DHCP socket: {error}")

    def send(self, command: Send) -> None:
        try:
            if command.raw:
                self._raw = self._raw or self._open_raw()
                self._rearm(self._raw)
                packet = codec.wrap(command.data, command.source, command.destination)
                self._raw.sendto(packet, (self.interface, ETH_P_IP, 0, 0, b"\xff" * 6))
            elif self._udp is not None:
                self._udp.sendto(command.data, (str(command.destination), codec.SERVER_PORT))
            else:
                return
            self._said = ""
        except OSError as error:
            self._failed(f"DHCP send: {error}")

    def rebind(self) -> None:
        """Close all: the interface was made anew."""
        self._raw = self._close(self._raw)
        self._udp = self._close(self._udp)
        self._address = None

    def _failed(self, problem: str) -> None:
        if problem != self._said:
            log.warning("%s: %s", self.interface, problem)
        self._said = problem

    def _open_raw(self) -> socket.socket:
        # Protocol 0: nothing is received before bind.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            attach(sock, ONLY_DHCP)
            sock.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
            with contextlib.suppress(OSError):  # kernel before 4.20: the filter wants port 68, ours go to 67
                sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            sock.bind((self.interface, ETH_P_IP))
        except OSError:
            sock.close()
            raise
        self._loop.add_reader(sock, self._read_raw)
        return sock

    def _open_udp(self, address: IPv4Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            attach(sock, _NOTHING)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode())
            # The address may not be on the interface yet.
            sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
            # Only DHCPINFORM broadcasts by this socket.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            set_mark(sock, self.mark)
            sock.bind((str(address), codec.CLIENT_PORT))
        except OSError:
            sock.close()
            raise
        return sock

    def _hear(self, sock: socket.socket, deaf: bool) -> None:
        """A deaf socket drops in its filter: nobody can wake us on port 68 while nothing is asked."""
        if deaf:
            self._loop.remove_reader(sock)
            attach(sock, _NOTHING)
        else:
            sock.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            self._loop.add_reader(sock, self._read_udp)

    def _rearm(self, sock: socket.socket) -> None:
        """An interface that went down leaves ENETDOWN on the socket, and libuv then polls it no more."""
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._loop.remove_reader(sock)
            self._loop.add_reader(sock, self._read_raw)

    def _close(self, sock: socket.socket | None) -> socket.socket | None:
        if sock is not None:
            self._loop.remove_reader(sock)
            sock.close()
        return None

    def _read_raw(self) -> None:
        sock = self._raw
        for _ in range(BATCH):
            if sock is None or sock is not self._raw:
                return
            try:
                data, ancillary, flags, _ = sock.recvmsg(LIMIT, socket.CMSG_SPACE(_AUX.size))
            except OSError:  # nothing left, or ENETDOWN: the link monitor will tell
                return
            status = 0
            for level, kind, value in ancillary:
                if level == SOL_PACKET and kind == PACKET_AUXDATA and len(value) >= _AUX.size:
                    status = _AUX.unpack_from(value)[0]
            if flags & socket.MSG_TRUNC or status & TP_STATUS_VLAN_VALID:
                continue
            try:
                payload, source = codec.unwrap(data, verify=not status & TP_STATUS_CSUMNOTREADY)
            except PeerError:
                continue
            self._received(payload, source)

    def _read_udp(self) -> None:
        sock = self._udp
        for _ in range(BATCH):
            if sock is None or sock is not self._udp:
                return
            try:
                data, _, flags, name = sock.recvmsg(LIMIT)
            except OSError:
                return
            if not flags & socket.MSG_TRUNC and name[1] == codec.SERVER_PORT:
                self._received(data, IPv4Address(name[0]))
