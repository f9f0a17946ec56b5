"""Keys and values of the maps of ``process.bpf.c``, byte for byte as ``bpf/process.h`` has them. Pure.

Numbers are in the machine's byte order. A path is stored as the kernel walks it: components from leaf to root, each
ended by a NUL, the rest zero (``/usr/bin/curl`` is ``curl\\0bin\\0usr\\0``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COMPONENT = 64
PATH = 320
DEPTH = 48
GROUPS = 64
KEPT = 32

PATH_INCOMPLETE = 1
REAL_USER = 8
PATH_UNJUDGED = 16
CGROUP_UNJUDGED = 32

SETTINGS = struct.Struct("=QII10Q")
SIDES = struct.Struct("=QQ")
LEARNED = struct.Struct("=QII")
OWNER = struct.Struct(f"={PATH}s16sIIIIQ")
MEMBERS = struct.Struct(f"=II{KEPT}I")

HASH, ARRAY, LRU_HASH = 1, 2, 9  # enum bpf_map_type
NO_PREALLOC = 1
MAPS = {
    "settings": (ARRAY, 4, SETTINGS.size, 1, 0),
    "paths": (HASH, PATH, SIDES.size, 8192, NO_PREALLOC),
    "names": (HASH, COMPONENT, SIDES.size, 8192, NO_PREALLOC),
    "uids": (HASH, 4, SIDES.size, 8192, NO_PREALLOC),
    "gids": (HASH, 4, SIDES.size, 8192, NO_PREALLOC),
    "classes": (HASH, 8, SIDES.size, 32768, NO_PREALLOC),
    "executables": (LRU_HASH, PATH, LEARNED.size, 2048, 0),
    "cgroups": (LRU_HASH, 8, LEARNED.size, 4096, 0),
    "owners": (LRU_HASH, 8, OWNER.size, 8192, 0),
    "members": (LRU_HASH, 8, MEMBERS.size, 8192, 0),
    "empty": (ARRAY, 4, MEMBERS.size, 1, 0),
}
"""Map -> type, bytes of key and value, entries, flags: as ``bpf/co_re.h`` declares them."""

Rules = Mapping[bytes, int]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who created a socket, or connected or sent on it last, as the kernel saw it then."""

    path: str
    """Absolute path; empty for a kernel thread and where ``complete`` is False."""
    complete: bool
    uid: int
    gid: int
    pid: int
    comm: str
    real: bool = False
    """``uid`` and ``gid`` are the process's real ones, not those of file access (fsuid)."""
    groups: tuple[int, ...] | None = None
    """Supplementary ones; None where the record does not say: no rule asks for groups, or there are too many."""
    cgroup: int = 0
    """Its id in cgroup2."""
    unjudged: bool = False
    """The kernel did not know which expressions hold for ``path``."""
    unplaced: bool = False
    """The kernel did not know the cgroup."""


def path_key(path: str) -> bytes | None:
    """The key of an absolute path, or None where it is longer than the walk reaches: a component of more than 63 bytes,
    more than 257 bytes of components below the first, or too deep. Such an executable is UNKNOWN to the kernel."""
    key = b""
    parts = [part for part in path.encode(errors="surrogateescape").split(b"/") if part]
    for part in reversed(parts):
        if len(part) >= COMPONENT or len(key) > PATH - COMPONENT:
            return None
        key += part + b"\0"
    # A mount point on the way costs a step too; leave room for eight.
    return key.ljust(PATH, b"\0") if parts and len(parts) <= DEPTH - 8 else None


def name_key(name: str) -> bytes | None:
    """The key of a base name, or None where it is longer than 63 bytes."""
    data = name.encode(errors="surrogateescape")
    return data.ljust(COMPONENT, b"\0") if 0 < len(data) < COMPONENT else None


def number_key(number: int) -> bytes:
    return struct.pack("=I", number)


def mask_key(mask: int) -> bytes:
    return struct.pack("=Q", mask)


def cgroup_key(number: int) -> bytes:
    return struct.pack("=Q", number)


def merged(pairs: Iterable[tuple[bytes | None, int]]) -> dict[bytes, int]:
    """Bits of each key; keys that occur twice are united, keys that cannot be are left out."""
    result: dict[bytes, int] = {}
    for key, mask in pairs:
        if key is not None:
            result[key] = result.get(key, 0) | mask
    return result


def parse_owner(data: bytes) -> Owner:
    """Raises struct.error unless ``data`` has exactly the size of the record."""
    path, comm, pid, uid, gid, flags, group = OWNER.unpack(data)
    complete = not flags & PATH_INCOMPLETE
    parts = path.split(b"\0")
    names = parts[: parts.index(b"")] if b"" in parts else parts
    text = "/" + b"/".join(reversed(names)).decode(errors="surrogateescape") if complete and names else ""
    return Owner(
        text, complete, uid, gid, pid, comm.partition(b"\0")[0].decode(errors="replace"), bool(flags & REAL_USER), None,
        group, bool(flags & PATH_UNJUDGED), bool(flags & CGROUP_UNJUDGED),
    )  # fmt: skip


def parse_members(data: bytes) -> tuple[int, ...] | None:
    """Supplementary groups; None where they were not kept. Raises struct.error as ``parse_owner``."""
    filled, count, *gids = MEMBERS.unpack(data)
    return tuple(gids[:count]) if filled else None
