"""Many datagrams a system call: recvmmsg(2) and sendmmsg(2) over memory that is laid out once.

For listeners that answer small datagrams at once, each in the slot that it came in. Not for bulk: datagrams of one peer
go quicker with UDP_GRO and UDP_SEGMENT (``transport.udp``).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket
import struct
from typing import Any

SLOTS = 64
"""Datagrams of one call."""
SIZE = 4096
"""Bytes of one slot; what is longer is cut."""
_NAME, _CONTROL = 32, 64  # room for a sockaddr_in6, and for one in6_pktinfo with its header
_HEADER = struct.Struct("@Nii")  # struct cmsghdr
_WORD = struct.calcsize("@N")
_INDEX4, _INDEX6 = _HEADER.size, _HEADER.size + 16  # the interface in struct in_pktinfo and in6_pktinfo
_LINK_LOCAL = 0xFE
_INT = struct.Struct("@I")


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_size", ctypes.c_uint32), ("vectors", ctypes.c_void_p),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )  # fmt: skip


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("size", ctypes.c_uint32))


_STRIDE = ctypes.sizeof(_Message)
_libc = ctypes.CDLL(None, use_errno=True)


class Batch:
    """``SLOTS`` datagrams of one UDP socket of ``family``; slot ``i`` starts at byte ``i * SIZE`` of ``data``.

    ``info``: the socket tells where a datagram came to (IP_PKTINFO, IPV6_RECVPKTINFO), and its answer leaves from
    there. A round is ``receive``, ``put`` for the slots to be answered, ``send``; the next ``receive`` forgets all.
    """

    def __init__(self, family: int, info: bool) -> None:
        self.data = mmap.mmap(-1, SLOTS * SIZE)
        self._family = family
        self._info = info
        self._names = mmap.mmap(-1, SLOTS * _NAME)
        self._control = mmap.mmap(-1, SLOTS * _CONTROL)
        self._heads = mmap.mmap(-1, SLOTS * _STRIDE)
        self._vectors = mmap.mmap(-1, SLOTS * ctypes.sizeof(_Vector))
        # The kernel has these addresses: the maps are never resized, and live as long as we do.
        data, names, control, heads, vectors = (
            ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for memory in (self.data, self._names, self._control, self._heads, self._vectors)
        )
        self._address = heads
        for slot in range(SLOTS):
            at = slot * ctypes.sizeof(_Vector)
            self._vectors[at : at + ctypes.sizeof(_Vector)] = bytes(_Vector(data + slot * SIZE, SIZE))
            header = _Header(
                names + slot * _NAME, _NAME, vectors + at, 1,
                control + slot * _CONTROL if info else None, _CONTROL if info else 0, 0,
            )  # fmt: skip
            self._heads[slot * _STRIDE : (slot + 1) * _STRIDE] = bytes(_Message(header, 0))
        self._blank = (self._heads[:], self._vectors[:])
        self._received = memoryview(self._heads).cast("I")[_Message.size.offset // 4 :: _STRIDE // 4]
        self._lengths = memoryview(self._vectors).cast("Q" if _WORD == 8 else "I")
        self._where = slice(4, 8) if family == socket.AF_INET else slice(8, 24)

    def receive(self, fd: int) -> list[int]:
        """Bytes of each datagram that waited, at most ``SLOTS``; none on an error, which a later call clears."""
        self._heads[:], self._vectors[:] = self._blank
        count = _libc.recvmmsg(fd, ctypes.c_void_p(self._address), SLOTS, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return []
        if self._info:
            self._unbind(count)
        return self._received[:count].tolist()

    def _unbind(self, count: int) -> None:
        """The answer takes the address asked, not the interface: the route back may be another one. A link-local
        address means nothing without its interface."""
        control = self._control
        at = _INDEX4 if self._family == socket.AF_INET else _INDEX6
        for start in range(0, count * _CONTROL, _CONTROL):
            if at == _INDEX4 or control[start + _HEADER.size] != _LINK_LOCAL:
                _INT.pack_into(control, start + at, 0)

    def host(self, slot: int) -> bytes:
        """The peer's address, 4 or 16 bytes."""
        start = slot * _NAME
        where = self._where
        return self._names[start + where.start : start + where.stop]

    def name(self, slot: int) -> tuple[Any, ...]:
        """The peer as Python's socket module spells it."""
        start = slot * _NAME
        text = socket.inet_ntop(self._family, self.host(slot))
        port = int.from_bytes(self._names[start + 2 : start + 4], "big")
        if self._family == socket.AF_INET:
            return text, port
        return text, port, 0, _INT.unpack_from(self._names, start + 24)[0]

    def info(self, slot: int) -> tuple[tuple[int, int, bytes], ...]:
        """Ancillary data that makes a later answer leave from where this datagram came to."""
        if not self._info:
            return ()
        start = slot * _CONTROL
        size, level, kind = _HEADER.unpack_from(self._control, start)
        if not _HEADER.size < size <= _CONTROL:
            return ()
        return ((level, kind, self._control[start + _HEADER.size : start + size]),)

    def put(self, slot: int, answer: bytes, behind: int = 0) -> None:
        """``answer`` goes out from ``slot``, behind the first ``behind`` bytes of what came in."""
        start = slot * SIZE + behind
        self.data[start : start + len(answer)] = answer
        self._lengths[2 * slot + 1] = behind + len(answer)

    def send(self, fd: int, start: int, end: int) -> None:
        """Slots ``start`` to ``end`` (not included), each to where it came from. What the kernel does not take is
        lost, as on the wire."""
        while start < end:
            count = _libc.sendmmsg(fd, ctypes.c_void_p(self._address + start * _STRIDE), end - start, 0)
            if count > 0:
                start += count
            elif (error := ctypes.get_errno()) == errno.EAGAIN:
                return
            elif error != errno.EINTR:
                start += 1
