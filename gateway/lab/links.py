"""BPF that is attached to a control group or a network namespace, as the kernel enumerates it.

By libbpf's thin wrappers of bpf(2): ``bpf_link_get_next_id``, ``bpf_link_get_info_by_fd``, ``bpf_prog_query``. The
layout of ``struct bpf_link_info`` is that of linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

LINK_CGROUP, LINK_NETNS = 3, 5  # enum bpf_link_type
ATTACH_TYPES = 64
"""More than the kernel has; those it does not know, or that no group can have, are refused."""
MOST = 64
"""Programs of one kind on one group; the kernel allows as many."""


def library() -> ctypes.CDLL:
    """libbpf, with which the gateway loads its own programs. OSError where there is none."""
    return ctypes.CDLL("libbpf.so.1", use_errno=True)


def links(groups: Iterable[Path], namespaces: Iterable[int] = ()) -> list[str]:
    """Links on these control groups and on network namespaces of these inodes, one line each. Needs root."""
    bpf = library()
    wanted = {folder.stat().st_ino: str(folder) for folder in groups}
    inodes = set(namespaces)
    found, number = [], ctypes.c_uint32(0)
    while bpf.bpf_link_get_next_id(number, ctypes.byref(number)) == 0:
        descriptor = bpf.bpf_link_get_fd_by_id(number)
        if descriptor < 0:
            continue  # it went meanwhile
        buffer, length = ctypes.create_string_buffer(256), ctypes.c_uint32(256)
        refused = bpf.bpf_obj_get_info_by_fd(descriptor, buffer, ctypes.byref(length))
        os.close(descriptor)
        if refused:
            continue
        kind, link, program = struct.unpack_from("=III", buffer.raw)
        (group,), (inode,) = struct.unpack_from("=Q", buffer.raw, 16), struct.unpack_from("=I", buffer.raw, 16)
        if kind == LINK_CGROUP and group in wanted:
            found.append(f"link {link} program {program} on {wanted[group]}")
        if kind == LINK_NETNS and inode in inodes:
            found.append(f"link {link} program {program} on network namespace {inode}")
    return found


def programs(group: Path) -> list[str]:
    """Programs attached to ``group`` itself, through a link or not: attach type and program, a line each."""
    bpf, found = library(), []
    descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for kind in range(ATTACH_TYPES):
            flags, count, numbers = ctypes.c_uint32(), ctypes.c_uint32(MOST), (ctypes.c_uint32 * MOST)()
            if bpf.bpf_prog_query(descriptor, kind, 0, ctypes.byref(flags), numbers, ctypes.byref(count)) == 0:
                found += [f"attach type {kind} program {number}" for number in numbers[: count.value]]
    finally:
        os.close(descriptor)
    return found
