"""UDP in the name of an address whose port a service of this host has taken: whole packets from a raw socket."""

from __future__ import annotations

import socket
import struct

from gateway.core.address import Address
from gateway.core.stream import Buffer
from gateway.core.wire import checksum
from gateway.kernel.sockopt import family_of, set_mark
from gateway.transport.udp import SockAddr

UDP = 17
HOPS = 64
LARGEST = 65507
"""Bytes of payload. The kernel does not fragment such packets: what exceeds the MTU is lost."""


class Raw:
    """Sends as ``peer``. Raises OSError; PermissionError without CAP_NET_RAW."""

    def __init__(self, peer: Address, mark: int) -> None:
        assert peer.ip is not None
        self._from, self._port = peer.ip.packed, peer.port
        # IPPROTO_RAW brings its own header, receives nothing, and is bound to no port (raw(7)).
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = socket.socket(family_of(peer.ip), kind, socket.IPPROTO_RAW)
        try:
            set_mark(self._sock, mark)
        except OSError:
            self._sock.close()
            raise

    def send(self, data: Buffer, name: SockAddr, segment: int = 0) -> None:
        """As ``transport.udp.transmit``."""
        size = segment or max(1, len(data))
        for start in range(0, max(1, len(data)), size):
            try:
                self._sock.sendto(self._packet(bytes(data[start : start + size]), name), (name[0], 0))
            except (OSError, ValueError):
                pass  # lost, as on the wire

    def _packet(self, payload: bytes, name: SockAddr) -> bytes:
        """Raises ValueError, OSError on what cannot be a packet."""
        if len(payload) > LARGEST:
            raise ValueError("too long")
        six = len(self._from) == 16
        to = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, name[0])
        size = 8 + len(payload)
        ports = struct.pack("!HHH", self._port, name[1], size)
        pseudo = self._from + to + struct.pack("!II" if six else "!HH", *((size, UDP) if six else (UDP, size)))
        datagram = ports + struct.pack("!H", checksum(pseudo + ports + payload) or 0xFFFF) + payload
        if six:
            return struct.pack("!IHBB", 6 << 28, size, UDP, HOPS) + self._from + to + datagram
        # The kernel fills in identification, total length and the header's checksum.
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, HOPS, UDP, 0) + self._from + to + datagram

    def close(self) -> None:
        self._sock.close()
