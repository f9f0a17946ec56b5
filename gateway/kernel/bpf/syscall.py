"""bpf(2) itself, for what both loaders share: maps by descriptor, and for the one without libbpf programs and links.

Layouts are those of ``union bpf_attr`` in linux/bpf.h, in the machine's byte order. Descriptors are close-on-exec.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Iterator
from ctypes import c_int, c_long, c_uint, c_void_p
from pathlib import Path

from gateway.core.errors import KernelError

MAP_CREATE, MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY = range(5)
PROG_LOAD, PROG_QUERY, MAP_LOOKUP_BATCH, LINK_CREATE = 5, 16, 24, 28
NUMBERS = {
    ("x86_64", 8): 321, ("x86_64", 4): 357, ("i686", 4): 357, ("i586", 4): 357, ("aarch64", 8): 280,
    ("aarch64", 4): 386, ("armv8l", 4): 386, ("armv7l", 4): 386, ("armv6l", 4): 386, ("armv5tel", 4): 386,
    ("riscv64", 8): 280, ("loongarch64", 8): 280, ("ppc64le", 8): 361, ("ppc64", 8): 361, ("ppc", 4): 361,
    ("s390x", 8): 351, ("mips", 4): 4355, ("mips64", 4): 4355, ("mips64", 8): 5315,
}  # fmt: skip
"""The system call's number by machine and bytes of a pointer: libc has no function for it."""
LOG_BYTES = 1 << 16
NAME = 15
"""Bytes of a name that the kernel keeps."""

ELEMENT = struct.Struct("=IIQQQ")
ELEMENTS = struct.Struct("=QQQQIIQQ")
CHUNK = 1024
"""Elements read by one call."""
MAP = struct.Struct("=IIIIIII16s")
PROGRAM = struct.Struct("=IIQQIIQII16sII")
LINK = struct.Struct("=IIII")
QUERY = struct.Struct("=II56x")
"""With room for all that the kernel writes back there, whatever length it is told."""
LOOPBACK = 1
"""The index that lo has in every network namespace."""
TCX_INGRESS, TCX_EGRESS = 46, 47
"""enum bpf_attach_type."""


@functools.cache
def _number() -> int:
    key = platform.machine(), struct.calcsize("P")
    if key not in NUMBERS:
        raise KernelError("bpf(2)", 0, f"its number on {key[0]} is not known here")
    return NUMBERS[key]


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype, _libc.syscall.argtypes = c_long, (c_long, c_int, c_void_p, c_uint)


_forbidden: list[str] = []


def forbid(reason: str) -> None:
    """No BPF in this process from now on, with either loader, as on a kernel without it."""
    _forbidden.append(reason)


def allowed() -> None:
    """Raises KernelError after ``forbid``."""
    if _forbidden:
        raise KernelError("bpf(2)", 0, _forbidden[0])


def bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    """What the kernel returns: a descriptor or 0, or minus an errno. Raises KernelError after ``forbid``."""
    allowed()
    result: int = _libc.syscall(_number(), command, attributes, len(attributes))
    return result if result >= 0 else -ctypes.get_errno()


def create_map(name: str, kind: int, key_size: int, value_size: int, entries: int, flags: int) -> Map:
    """A new map; its descriptor is the caller's to close. Raises KernelError."""
    fd = bpf(MAP_CREATE, MAP.pack(kind, key_size, value_size, entries, flags, 0, 0, name.encode()[:NAME]))
    if fd < 0:
        raise KernelError(f"create BPF map {name}", -fd)
    return Map(name, fd, key_size, value_size)


def load_program(name: str, kind: int, attach: int, code: bytes) -> int:
    """The descriptor of a GPL program, the caller's to close. ``kind``, ``attach``: enum bpf_prog_type and
    bpf_attach_type. Raises KernelError with the end of the verifier's log."""
    code_at, license_at = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(LOG_BYTES)
    fd = 0
    # The log only where it was refused: one that does not fit would itself be a refusal.
    for level in (0, 1):
        size, at = (LOG_BYTES, ctypes.addressof(log)) if level else (0, 0)
        places = ctypes.addressof(code_at), ctypes.addressof(license_at)
        head = (kind, len(code) // 8, *places, level, size, at, 0, 0)
        fd = bpf(PROG_LOAD, PROGRAM.pack(*head, name.encode()[:NAME], 0, attach))
        if fd >= 0:
            return fd
    lines = log.value.decode(errors="replace").strip().splitlines()[-3:]
    raise KernelError(f"load {name}", -fd, "\n  ".join(["", *lines]) if lines else "")


def link_cgroup(name: str, program: int, cgroup_fd: int, attach: int) -> int:
    """The descriptor of a link (Linux 5.7): the attachment lasts as long as it or a copy. Raises KernelError."""
    fd = bpf(LINK_CREATE, LINK.pack(program, cgroup_fd, attach, 0))
    if fd < 0:
        raise KernelError(f"attach {name} to the cgroup", -fd)
    return fd


def link_device(name: str, program: int, index: int, attach: int) -> int:
    """As ``link_cgroup``, to the interface of that index by tcx (Linux 6.6), after the programs that are there."""
    fd = bpf(LINK_CREATE, LINK.pack(program, index, attach, 0))
    if fd < 0:
        raise KernelError(f"attach {name} to interface {index}", -fd)
    return fd


def has_tcx() -> bool:
    """Whether this kernel attaches programs to interfaces by links."""
    attributes = ctypes.create_string_buffer(QUERY.pack(LOOPBACK, TCX_INGRESS), QUERY.size)
    return bpf(PROG_QUERY, attributes) != -errno.EINVAL


class Map:
    """One map. Keys and values are bytes of exactly ``key_size`` and ``value_size``. Not for use by several threads."""

    def __init__(self, name: str, fd: int, key_size: int, value_size: int) -> None:
        self.name = name
        self.fd = fd
        self.key_size = key_size
        self.value_size = value_size
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(max(key_size, value_size))
        places = ctypes.addressof(self._key), ctypes.addressof(self._value)
        self._element = ELEMENT.pack(fd, 0, *places, 0)
        self._first = ELEMENT.pack(fd, 0, 0, places[1], 0)
        self._delete = ELEMENT.pack(fd, 0, places[0], 0, 0)

    def _call(self, command: int, key: bytes, element: bytes = b"") -> int:
        if len(key) != self.key_size:
            raise KernelError(f"BPF map {self.name}", 0, f"key of {len(key)} bytes, not {self.key_size}")
        self._key.raw = key
        return bpf(command, element or self._element)

    def __getitem__(self, key: bytes) -> bytes:
        """Raises KeyError."""
        if self._call(MAP_LOOKUP, key):
            raise KeyError(key)
        return self._value.raw[: self.value_size]

    def __setitem__(self, key: bytes, value: bytes) -> None:
        """Add or replace, atomically for readers of a hash. Raises KernelError (E2BIG where the map is full)."""
        if len(value) != self.value_size:
            raise KernelError(f"BPF map {self.name}", 0, f"value of {len(value)} bytes, not {self.value_size}")
        ctypes.memmove(self._value, value, self.value_size)
        code = self._call(MAP_UPDATE, key)
        if code:
            raise KernelError(f"update BPF map {self.name}", -code)

    def pop(self, key: bytes) -> None:
        """Delete; an absent key is no error. Raises KernelError."""
        code = self._call(MAP_DELETE, key, self._delete)
        if code not in (0, -errno.ENOENT):
            raise KernelError(f"delete from BPF map {self.name}", -code)

    def __iter__(self) -> Iterator[bytes]:
        code = bpf(MAP_NEXT_KEY, self._first)
        while not code:
            key = self._value.raw[: self.key_size]
            yield key
            code = self._call(MAP_NEXT_KEY, key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values of a hash, by the thousand (Linux 5.6); what changes meanwhile may be there or not, or twice.
        Raises KernelError."""
        keys = ctypes.create_string_buffer(self.key_size * CHUNK)
        values = ctypes.create_string_buffer(self.value_size * CHUNK)
        token = ctypes.create_string_buffer(max(self.key_size, 4))
        places = ctypes.addressof(token), ctypes.addressof(keys), ctypes.addressof(values)
        code, begun = 0, False
        while not code:
            wanted = ELEMENTS.pack(places[0] if begun else 0, *places, CHUNK, self.fd, 0, 0)
            request = ctypes.create_string_buffer(wanted, ELEMENTS.size)
            code, begun = bpf(MAP_LOOKUP_BATCH, request), True
            if code not in (0, -errno.ENOENT):
                raise KernelError(f"read BPF map {self.name}", -code)
            count = ELEMENTS.unpack(request.raw)[4]
            found, beside = keys.raw, values.raw
            for at in range(count):
                key, value = at * self.key_size, at * self.value_size
                yield found[key : key + self.key_size], beside[value : value + self.value_size]

    def each_processor(self, key: bytes) -> list[bytes]:
        """The values of one key in a per-CPU map. Raises KernelError."""
        size = (self.value_size + 7) & ~7
        values = ctypes.create_string_buffer(size * processors())
        element = ELEMENT.pack(self.fd, 0, ctypes.addressof(self._key), ctypes.addressof(values), 0)
        if code := self._call(MAP_LOOKUP, key, element):
            raise KernelError(f"read BPF map {self.name}", -code)
        return [values.raw[at : at + self.value_size] for at in range(0, len(values), size)]


@functools.cache
def processors() -> int:
    """That this kernel may ever have: so many values has a key of a per-CPU map. Raises KernelError."""
    try:
        last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition(",")[2].rpartition("-")[2]
    except OSError as error:
        raise KernelError("count processors", error.errno or 0) from error
    return int(last) + 1


def close(descriptors: list[int]) -> None:
    """Close and forget them, the last first."""
    while descriptors:
        os.close(descriptors.pop())
