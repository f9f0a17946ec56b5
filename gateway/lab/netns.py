"""Network and mount namespaces by system call: make, enter, delete.

``unshare`` and ``setns`` move one thread, and a program started by that thread starts where the thread is. So
entering is done in a thread made for it, which ends afterwards, and the rest of this process stays where it was.
Python has ``os.setns`` from 3.12 on; here it is ctypes. A named namespace is a bind mount below ``/run/netns``, as
``ip netns`` makes them (ip-netns(8)), so that ``ip -n NAME`` works; its files are never looked up by pattern.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gateway.core.errors import GatewayError

T = TypeVar("T")
NAMED = Path("/run/netns")
CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x200, 0x20000, 0x40000000
MS_BIND, MS_REC, MS_SLAVE = 0x1000, 0x4000, 0x80000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(GatewayError):
    """The laboratory could not be made, or something in it did not happen in time."""


def _checked(what: str, result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def setns(descriptor: int, kind: int) -> None:
    _checked("setns", _libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)))


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    code = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _checked(f"mount on {target}", code)


def unmount(target: str | Path) -> None:
    _checked(f"umount {target}", _libc.umount2(os.fsencode(target), ctypes.c_int(MNT_DETACH)))


def apart(work: Callable[[], T], timeout: float | None = None) -> T:
    """Run ``work`` in a thread of its own and give back its result or its exception.

    Raises :class:`LabError` after ``timeout`` seconds; the thread then stays behind until its call returns.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # handed to the caller below
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise LabError(f"no end after {timeout} s")
    if failure:
        raise failure[0]
    return outcome[0]


def outside(work: Callable[[], T]) -> T:
    """``work()`` where this process itself is, from whichever host of a lab the calling thread has entered."""
    kinds = (("net", CLONE_NEWNET), ("mnt", CLONE_NEWNS))
    here, there = Path("/proc/thread-self/ns"), Path(f"/proc/{os.getpid()}/ns")
    away = [(there / name, kind) for name, kind in kinds if os.readlink(here / name) != os.readlink(there / name)]
    if not away:
        return work()

    def body() -> T:
        unshare(CLONE_FS)
        for descriptor, kind in [(os.open(place, os.O_RDONLY | os.O_CLOEXEC), kind) for place, kind in away]:
            setns(descriptor, kind)
            os.close(descriptor)
        return work()

    return apart(body)


def create(name: str) -> None:
    """Make a network namespace called ``name``. OSError EEXIST if there is one."""
    NAMED.mkdir(parents=True, exist_ok=True)
    target = NAMED / name
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o444))

    def work() -> None:
        unshare(CLONE_NEWNET)
        mount("/proc/thread-self/ns/net", target, flags=MS_BIND)

    try:
        apart(work)
    except BaseException:
        target.unlink()
        raise


def delete(name: str) -> None:
    """Remove the name; the namespace goes when its last process has gone. Silent if there is none."""
    target = NAMED / name
    with contextlib.suppress(OSError):
        unmount(target)
    # Unlinking also detaches the copies of the mount that other mount namespaces have.
    target.unlink(missing_ok=True)


class Place:
    """A network namespace with a mount namespace of its own, in which /etc/resolv.conf is the file given."""

    def __init__(self, name: str, resolv_conf: Path) -> None:
        self.name = name
        self._net = os.open(NAMED / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._mnt = apart(lambda: _private_mounts(resolv_conf))
        except BaseException:
            os.close(self._net)
            raise

    def enter(self) -> None:
        """Move the calling thread in, for good."""
        setns(self._net, CLONE_NEWNET)
        # A thread that shares its root and working directory with others cannot change its mount namespace.
        unshare(CLONE_FS)
        setns(self._mnt, CLONE_NEWNS)

    def call(self, work: Callable[[], T], timeout: float | None = None) -> T:
        """``work()`` as if run on this host; sockets it opens belong to the host."""

        def body() -> T:
            self.enter()
            return work()

        return apart(body, timeout)

    def close(self) -> None:
        os.close(self._net)
        os.close(self._mnt)


def _private_mounts(resolv_conf: Path) -> int:
    """A new mount namespace, as a descriptor. /sys stays as it was: links are read by netlink, not from there."""
    unshare(CLONE_FS | CLONE_NEWNS)
    mount("none", "/", flags=MS_REC | MS_SLAVE)
    target = Path("/etc/resolv.conf").resolve()
    if target.parts[:2] == ("/", "run"):
        # Generated by a local resolver, whose sockets beside it would answer for the host's own network.
        parent = next(folder for folder in target.parents if folder.exists())
        mount("tmpfs", parent, "tmpfs")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    if not target.exists():
        raise LabError(f"{target} does not exist: create it, empty, so that a lab host can have its own")
    mount(str(resolv_conf), target, flags=MS_BIND)
    if Path("/run/nscd").is_dir():  # would look names up outside
        mount("tmpfs", "/run/nscd", "tmpfs")
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
