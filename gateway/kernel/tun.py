"""A TUN device of ours: made through /dev/net/tun, gone with its descriptor. linux/if_tun.h, linux/virtio_net.h.

Each packet has a virtio_net_hdr before it: the kernel may hand over 64 KB of TCP as one packet, with a checksum that is
still to be completed, and takes back what it was handed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from gateway.core.errors import KernelError

PATH = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CSUM, TSO4, TSO6 = 0x01, 0x02, 0x04
HEADER = 10
"""Bytes of the virtio_net_hdr before each packet; all zero: nothing is left to do."""
PLAIN = bytes(HEADER)
LARGEST = HEADER + 65535
_REQUEST = struct.Struct("16sH22x")


class Device:
    """``name`` may hold "%d": the kernel then takes the first number that is free. Raises KernelError: EBUSY where the
    name belongs to another, EINVAL where it is no name."""

    def __init__(self, name: str) -> None:
        try:
            self.fd = os.open(PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"open {PATH}", error.errno or 0) from error
        try:
            request = _REQUEST.pack(name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)
            answer = fcntl.ioctl(self.fd, TUNSETIFF, request)
            fcntl.ioctl(self.fd, TUNSETOFFLOAD, CSUM | TSO4 | TSO6)
        except OSError as error:
            os.close(self.fd)
            raise KernelError(f"make the interface {name}", error.errno or 0) from error
        self.name = _REQUEST.unpack(answer)[0].rstrip(b"\0").decode()
        self._buffer = bytearray(LARGEST)
        self._view = memoryview(self._buffer)

    def read(self) -> memoryview | None:
        """The next packet with its header, valid until the next call; None where there is none now. Raises OSError."""
        try:
            size = os.readv(self.fd, [self._buffer])
        except (BlockingIOError, InterruptedError):
            return None
        return self._view[:size]

    def write(self, packet: bytes | memoryview) -> None:
        """A packet with its header into the kernel, as if it came in through the interface. What the kernel does not
        take is lost, as on a wire."""
        try:
            os.write(self.fd, packet)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise

    def close(self) -> None:
        """The interface goes, with its addresses and routes. Any number of times."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
