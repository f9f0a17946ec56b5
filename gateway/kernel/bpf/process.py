"""Process marks: the cgroup programs of ``process.bpf.c``, attached and fed with a plan.

A socket of this network namespace gets, in mark bits 27-31, the class of its process. Sockets that carry a foreign mark
in bits 24-31, or our own, are left alone. Closing (or dying) detaches the programs; sockets keep the marks they have.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from gateway.core.errors import KernelError
from gateway.kernel import cgroup, mark
from gateway.kernel.bpf import record
from gateway.kernel.bpf.fallback import Compiled
from gateway.kernel.bpf.loader import OBJECTS, Object
from gateway.kernel.bpf.syscall import Map
from gateway.kernel.plan import ProcessPlan

OBJECT = OBJECTS / "process.bpf.o"
CONNECT = ("connect4", "connect6")
SENDMSG = ("sendmsg4", "sendmsg6")
ROOT_KEY = struct.pack("=I", 0)
SO_NETNS_COOKIE = 71

LOST = "userspace judges this host's own flows; with rules by user alone, not by path, name or group, nftables does"
KNOWN_LESS = f"BCC's program stands in: {LOST}, with rules by cgroup alone that program"
KNOWN_NOTHING = f"{LOST}; owners are looked for in /proc"
"""What it costs that the CO-RE object cannot be had, for a person: with BCC, and without."""

Table = dict[bytes, int]


def netns_cookie() -> int:
    """The cookie of this network namespace (Linux 5.14 and later). Raises KernelError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            (cookie,) = struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))
        except OSError as error:
            raise KernelError("read the network namespace's cookie", error.errno or 0, "needs Linux 5.14") from error
    return int(cookie)


class Programs(Protocol):
    """``process.bpf.c`` in the kernel, whichever way it came there: ``loader.Object`` or ``fallback.Compiled``."""

    def map(self, name: str) -> Map: ...
    def attach_cgroup(self, name: str, cgroup_fd: int) -> None: ...
    @property
    def links(self) -> tuple[int, ...]: ...
    def close(self) -> None: ...


class Loaded(NamedTuple):
    """``lost``: programs that this kernel refused. ``instead``: why it is BCC's program, which knows less; "" = it is
    not."""

    programs: Programs
    lost: tuple[str, ...]
    instead: str = ""


def load() -> Loaded:
    """The CO-RE object, else what BCC compiles. Raises KernelError, with both reasons, where neither can be had."""
    try:
        return Loaded(*_without_refused(relocated))
    except KernelError as error:
        reason = error
    try:
        return Loaded(*_without_refused(Compiled), str(reason).partition("\n")[0].rstrip(": "))
    except KernelError as error:
        raise KernelError("load the process programs", 0, f"{reason}\nnor with BCC: {error}") from error


def relocated(without: frozenset[str] = frozenset()) -> Object:
    """The CO-RE object in the kernel. Raises KernelError."""
    programs = Object(OBJECT, without)
    try:
        programs.load()
    except KernelError:
        programs.close()
        raise
    return programs


def _without_refused(load: Callable[[frozenset[str]], Programs]) -> tuple[Programs, tuple[str, ...]]:
    try:
        return load(frozenset()), ()
    except KernelError as error:
        if not error.errno:
            raise  # not the kernel's word
        # Before Linux 5.12 sendmsg4/6 may not set a mark; birth and connect remain.
        return load(frozenset(SENDMSG)), SENDMSG


class ProcessMarks:
    """The cgroup programs, attached to ``cgroup_path`` and marking by ``plan`` in the caller's network namespace.

    ``lost`` names the programs that the kernel refused; ``instead`` says why BCC's program stands in for the CO-RE
    object ("" = it does not), and then no path, no name and no supplementary group is known to the kernel. ``load``
    brings the programs into the kernel. Raises KernelError; nothing stays attached then.
    """

    def __init__(
        self,
        cgroup_path: str | Path,
        plan: ProcessPlan,
        *,
        netns: int | None = None,
        load: Callable[[], Loaded] = load,
    ) -> None:
        self._netns = netns_cookie() if netns is None else netns
        self._epoch = 0
        """Number of the plan in force; its last bit is the side of it."""
        self._plan = ProcessPlan()
        self._tables: dict[str, Table] = {}
        self._programs, self.lost, self.instead = load()
        try:
            self._maps = {name: self._programs.map(name) for name in record.MAPS}
            self._settings, self._owners = self._maps["settings"], self._maps["owners"]
            self._check()
            self.apply(plan)
            self._attach(cgroup_path)
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        for name, (_, *sizes, _, _) in record.MAPS.items():
            if [self._maps[name].key_size, self._maps[name].value_size] != sizes:
                raise KernelError(f"load {OBJECT.name}", 0, "built from another version (make -C bpf)")

    def _attach(self, cgroup_path: str | Path) -> None:
        try:
            fd = os.open(cgroup_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise KernelError(f"open cgroup {cgroup_path}", error.errno or 0) from error
        try:
            for name in ("sock_create", *CONNECT, *SENDMSG):
                if name not in self.lost:
                    self._programs.attach_cgroup(name, fd)
        finally:
            os.close(fd)

    def apply(self, plan: ProcessPlan) -> None:
        """Put ``plan`` in force at one instant.

        Every map value has two sides. The new plan is written on the side that is not read, then the epoch in
        ``settings`` turns; a program that runs meanwhile goes on with the old side, which stays until the next
        ``apply``. What was learned holds for the plan of its epoch alone. Raises KernelError (a map is full), and then
        the old plan is still in force, whole.
        """
        new = tables(plan)
        epoch = self._epoch + 1 & 0xFFFFFFFF
        side = epoch & 1
        for name, table in new.items():
            _write(self._maps[name], self._tables.get(name, {}), table, side)
        asks = [asked(plan), asked(plan)]
        asks[1 - side] = asked(self._plan)
        # What the new side asks for is there before the epoch turns: a value is copied word by word.
        for number in (self._epoch, epoch):
            self._settings[ROOT_KEY] = record.SETTINGS.pack(self._netns, number, 0, *asks[0], *asks[1])
        self._tables, self._plan, self._epoch = new, plan, epoch

    def owner(self, cookie: int) -> record.Owner | None:
        """Owner of the socket with ``cookie`` (SO_COOKIE), or None: another namespace's, older than the programs, or
        long unused. The kernel then knows its executable and its cgroup as far as the plan asks for them."""
        key = struct.pack("=Q", cookie)
        try:
            owner = record.parse_owner(self._owners[key])
        except KeyError:
            return None
        self._teach(owner)
        try:
            return replace(owner, groups=record.parse_members(self._maps["members"][key]))
        except KeyError:
            return owner

    def _teach(self, owner: record.Owner) -> None:
        """A path and a cgroup's id never come to mean something else, so what is said of them holds with the plan."""
        with contextlib.suppress(KernelError):  # its next flow comes to userspace again
            key = record.path_key(owner.path) if owner.unjudged else None
            if key is not None:
                self._learn("executables", key, self._plan.judged(owner.path))
            place = cgroup.path_of(owner.cgroup, owner.pid) if owner.unplaced else ""
            if place:
                self._learn("cgroups", record.cgroup_key(owner.cgroup), self._plan.placed(place))

    def _learn(self, name: str, key: bytes, bits: int) -> None:
        self._maps[name][key] = record.LEARNED.pack(bits, self._epoch, 0)

    @property
    def links(self) -> tuple[int, ...]:
        """Descriptors whose copies keep the programs attached, with the plan that is in force."""
        return self._programs.links

    def close(self) -> None:
        """Detach. Any number of times."""
        self._programs.close()


def tables(plan: ProcessPlan) -> dict[str, Table]:
    """Contents of each map, by its name. Raises KernelError for a class that no socket may have."""
    for mask, number in plan.classes:
        if not 0 <= number < mark.UNKNOWN:
            raise KernelError(f"process class {number} of mask {mask:#x}", 0, "is not 0..29")
    return {
        "paths": record.merged((record.path_key(path), bits) for path, bits in plan.paths),
        "names": record.merged((record.name_key(name), bits) for name, bits in plan.names),
        "uids": record.merged((record.number_key(uid), bits) for uid, bits in plan.uids),
        "gids": record.merged((record.number_key(gid), bits) for gid, bits in plan.gids),
        "classes": {record.mask_key(mask): number + 1 for mask, number in plan.classes},
    }


def asked(plan: ProcessPlan) -> tuple[int, ...]:
    """Bits that any path (by list or by expression), name, group, expression, cgroup sets: a process of which one of
    these is not known might have them."""

    def united(*entries: tuple[Any, int]) -> int:
        return functools.reduce(operator.or_, (bits for _, bits in entries), 0)

    kinds = (*plan.paths, *plan.expressions), plan.names, plan.gids, plan.expressions, plan.cgroups
    return tuple(united(*entries) for entries in kinds)


def _write(target: Map, current: Table, new: Table, side: int) -> None:
    """Write ``new`` on ``side`` and keep ``current`` on the other; what is on neither goes away."""
    for key in list(target):
        if key not in current and key not in new:
            target.pop(key)
    for key in current.keys() | new.keys():
        values = [0, 0]
        values[side], values[1 - side] = new.get(key, 0), current.get(key, 0)
        target[key] = record.SIDES.pack(*values)
