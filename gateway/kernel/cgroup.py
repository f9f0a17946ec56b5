"""The cgroup2 hierarchy: where it is mounted, sub-cgroups of our own, and moving a process into one."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from functools import lru_cache
from pathlib import Path

from gateway.core.errors import KernelError

_libc = ctypes.CDLL(None, use_errno=True)
MOUNTS = Path("/proc/mounts")
HANDLE = struct.Struct("=IiQ")
"""struct file_handle of a cgroup: bytes of the handle, its type, the id (include/linux/exportfs.h: FILEID_KERNFS)."""
KERNFS = 0xFE
REMEMBERED = 4096


def mount_point(mounts: Path = MOUNTS) -> Path:
    """Where cgroup2 is mounted: /sys/fs/cgroup on a unified host, a folder below it on a hybrid one. Raises
    KernelError where it is nowhere."""
    for line in mounts.read_text().splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "cgroup2":
            # Spaces in a mount point are written as octal escapes (proc(5)).
            return Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1]))
    raise KernelError("find cgroup2", 0, "it is not mounted (mount -t cgroup2 none /sys/fs/cgroup)")


def path_of(number: int, pid: int = 0) -> str:
    """Path below the mount of the cgroup with this id ("/" is the root); "" where it is gone or outside of the mount.
    Without CAP_DAC_READ_SEARCH only that of process ``pid`` can be told, as long as it is there."""
    try:
        return _path_of(number)
    except (KernelError, OSError):
        path = path_of_process(pid)
    try:
        return path if path and os.stat(f"{mount_point()}{path}").st_ino == number else ""
    except (KernelError, OSError):
        return ""


@lru_cache(REMEMBERED)
def _path_of(number: int) -> str:
    """An id is never used again, and a cgroup cannot be renamed."""
    mount = mount_point()
    root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        handle = ctypes.create_string_buffer(HANDLE.pack(8, KERNFS, number), HANDLE.size)
        fd = _libc.open_by_handle_at(root, handle, os.O_PATH | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        os.close(root)
    if path == str(mount):
        return "/"
    if not path.startswith(f"{mount}/") or path.endswith(" (deleted)"):
        raise OSError(errno.ESTALE, path)
    return path.removeprefix(str(mount))


def path_of_process(pid: int) -> str:
    """The same of a process, from /proc/PID/cgroup; "" where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    path = next((line[3:] for line in lines if line.startswith("0::/")), "")
    return path.removesuffix(" (deleted)")


def make(path: Path) -> Path:
    """Create a cgroup below one that exists; one that is there already is taken as it is. Raises KernelError."""
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise KernelError(f"make cgroup {path}", error.errno or 0) from error
    return path


def remove(path: Path) -> None:
    """Remove an empty cgroup; one that is gone is no error. Raises KernelError (EBUSY: processes are left in it)."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise KernelError(f"remove cgroup {path}", error.errno or 0) from error


def move(pid: int, path: Path) -> None:
    """Move a whole process (0: the caller) into the cgroup. Raises KernelError."""
    try:
        fd = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, str(pid).encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f"move process {pid} to cgroup {path}", error.errno or 0) from error


def processes(path: Path) -> tuple[int, ...]:
    """Processes in the cgroup itself (not below it); none where it is gone."""
    try:
        return tuple(int(line) for line in (path / "cgroup.procs").read_text().split())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return ()
        raise KernelError(f"list cgroup {path}", error.errno or 0) from error
