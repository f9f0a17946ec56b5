"""Who owns a flow that starts on this host: ``core.contracts.Owners``.

::

    sock_diag, one exact lookup     source, destination -> uid, inode, cookie      (a forwarded flow ends here)
    owners map of process.bpf.c     cookie -> path, uid, gid, pid, cgroup
    else /proc/PID/fd               inode -> pid -> /proc/PID/exe

Not a scan of /proc/net. Wire formats: linux/inet_diag.h, linux/sock_diag.h. Calls do not block but
for the /proc scan, which is the fallback.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from time import monotonic
from typing import NamedTuple, Protocol

from gateway.core.address import IP, Address
from gateway.core.errors import KernelError
from gateway.core.flow import Network, Process
from gateway.kernel.bpf.record import Owner
from gateway.kernel.cgroup import path_of, path_of_process
from gateway.kernel.netlink.lookup import NETLINK_ROUTE, Lookup, route_to

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
TCP_LISTEN = 10
NOCOOKIE = b"\xff" * 8
REQUEST = struct.Struct("=BBBBI")
"""struct inet_diag_req_v2 up to its socket id: family, protocol, extensions, pad, states."""
PORTS = struct.Struct("!HH")
MESSAGE = 72
"""Size of struct inet_diag_msg."""
KNOWN = 1.0
"""Seconds that an address counts as another host's once it was found to be: what it begins is only passing through. An
address that becomes ours meanwhile has no owner for so long."""
FOREIGN = 4096
"""Addresses of other hosts remembered; at the bound all are forgotten and asked for anew."""


class Found(NamedTuple):
    """What sock_diag says of one socket."""

    state: int
    source: IP
    port: int
    cookie: int
    uid: int
    inode: int


class Cookies(Protocol):
    """What knows owners by socket cookie: ``ProcessMarks``."""

    def owner(self, cookie: int) -> Owner | None: ...


class SocketOwners:
    """Looks owners up in the network namespace where it was made.

    ``marks`` None: every answer comes through /proc. Raises KernelError from the constructor where netlink is refused;
    ``find`` never raises. Not for use by several threads.
    """

    def __init__(self, marks: Cookies | None = None) -> None:
        self.marks = marks
        self._diag = Lookup(NETLINK_SOCK_DIAG)
        try:
            self._route = Lookup(NETLINK_ROUTE)
        except KernelError:
            self._diag.close()
            raise
        self._foreign: dict[IP, float] = {}

    def close(self) -> None:
        """Any number of times."""
        self._diag.close()
        self._route.close()

    def find(self, network: Network, source: Address, destination: Address, *, search: bool = True) -> Process | None:
        """The process behind the socket that sends from ``source`` to ``destination``; None for a forwarded flow, a
        socket that is gone, and a domain name in place of an address. Not ``search``: the processes are not searched,
        so that of one that the programs do not know the user alone is found."""
        ip = source.ip
        if ip is None or destination.ip is None or ip.version != destination.ip.version:
            return None
        now = monotonic()
        if self._foreign.get(ip, 0.0) > now:
            return None
        try:
            if not self._is_local(ip):
                if len(self._foreign) >= FOREIGN:
                    self._foreign.clear()
                self._foreign[ip] = now + KNOWN
                return None
            found = self._socket(network, source, destination)
        except OSError:
            return None
        if found is None:
            return None
        owner = self.marks.owner(found.cookie) if self.marks else None
        if owner is None:
            return _of_inode(found.inode, found.uid, search) if found.inode else None
        known = _of_record(owner, found.uid)
        if known.path or owner.complete or not found.inode:
            return known
        # The process has ended, and another may hold the socket; the kernel went by the cgroup of the first.
        holder = _of_inode(found.inode, found.uid, search)
        return holder._replace(cgroup=known.cgroup or holder.cgroup)

    def _socket(self, network: Network, source: Address, destination: Address) -> Found | None:
        assert source.ip is not None
        assert destination.ip is not None
        ends = (source.ip, source.port), (destination.ip, destination.port)
        if network == "udp":
            # udp_dump_one() swaps the ends "for historical reasons".
            ends = ends[1], ends[0]
        family = socket.AF_INET if isinstance(source.ip, IPv4Address) else socket.AF_INET6
        protocol = socket.IPPROTO_TCP if network == "tcp" else socket.IPPROTO_UDP
        (first, first_port), (second, second_port) = ends
        body = REQUEST.pack(family, protocol, 0, 0, 0xFFFFFFFF) + PORTS.pack(first_port, second_port)
        body += first.packed.ljust(16, b"\0") + second.packed.ljust(16, b"\0") + bytes(4) + NOCOOKIE
        answer = self._diag.ask(SOCK_DIAG_BY_FAMILY, body)
        found = parse_message(answer) if answer is not None else None
        if found is None or found.port != source.port:
            return None
        if found.source == source.ip and not (network == "tcp" and found.state == TCP_LISTEN):
            return found
        return found if network == "udp" and found.source.is_unspecified else None

    def _is_local(self, ip: IP) -> bool:
        """Whether ``ip`` is an address of this host. Raises OSError."""
        found = route_to(self._route, ip)
        return found is not None and found.local


def parse_message(data: bytes) -> Found | None:
    """A struct inet_diag_msg; an IPv4-mapped source is unmapped. None where it is cut short or of another family."""
    if len(data) < MESSAGE or data[0] not in (socket.AF_INET, socket.AF_INET6):
        return None
    (port,) = struct.unpack_from("!H", data, 4)
    source = Address.of(ip_address(data[8:12] if data[0] == socket.AF_INET else data[8:24]), port).ip
    assert source is not None
    (cookie,) = struct.unpack_from("=Q", data, 44)
    uid, inode = struct.unpack_from("=II", data, 64)
    return Found(data[1], source, port, cookie, uid, inode)


def user_names(uid: int) -> tuple[str, ...]:
    """All names of ``uid``, the login name first; none where it has none. See ``group_names``."""
    try:
        return _user_names(uid)
    except (KeyError, OverflowError):
        return ()


def group_names(gids: tuple[int, ...]) -> tuple[str, ...]:
    """All names of these groups, of which one may have several: a rule may ask for any, and the kernel goes by
    number."""
    try:
        return _group_names(gids)
    except KeyError:
        return ()


def forget_names() -> None:
    """The files of users and groups may have changed."""
    _user_names.cache_clear()
    _group_names.cache_clear()


# What is not there is not remembered: without a free descriptor, or a name service that is not up yet, nobody is.
@lru_cache(1024)
def _user_names(uid: int) -> tuple[str, ...]:
    first = pwd.getpwuid(uid).pw_name
    names = [entry.pw_name for entry in pwd.getpwall() if entry.pw_uid == uid]
    return tuple(dict.fromkeys((first, *names)))


@lru_cache(1024)
def _group_names(gids: tuple[int, ...]) -> tuple[str, ...]:
    known = grp.getgrall() if gids else []
    if gids and not known:
        raise KeyError(gids)
    return tuple(entry.gr_name for gid in gids for entry in known if entry.gr_gid == gid)


def process(path: str, uid: int, gids: tuple[int, ...] = (), pid: int = 0, cgroup: str = "") -> Process:
    """With the names that belong to the numbers."""
    first, *others = user_names(uid) or ("",)
    return Process(path, uid, first, gids, pid, group_names(gids), tuple(others), cgroup)


def _of_record(owner: Owner, uid: int) -> Process:
    """``uid`` is the socket's, for a record that has no better one."""
    path = owner.path if owner.complete else executable(owner.pid)
    uid, primary = (uid, ()) if owner.real else (owner.uid, (owner.gid,))
    groups = supplementary(owner.pid, uid) if owner.groups is None else owner.groups
    place = path_of(owner.cgroup, owner.pid) or path_of_process(owner.pid)
    return process(path, uid, (*primary, *(gid for gid in groups if gid not in primary)), owner.pid, place)


def _of_inode(inode: int, uid: int, search: bool) -> Process:
    wanted = f"socket:[{inode}]"
    for pid in _processes(uid) if search else ():
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                if any(_target(entry.path) == wanted for entry in entries):
                    return process(executable(pid), uid, supplementary(pid, uid), pid, path_of_process(pid))
        except OSError:
            continue
    return process("", uid)


def _processes(uid: int) -> Iterator[int]:
    """All processes, those of ``uid`` first: a socket may outlive its maker's change of user."""
    others = []
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdecimal():
                continue
            try:
                owner = entry.stat().st_uid
            except OSError:
                continue
            if owner == uid:
                yield int(entry.name)
            else:
                others.append(int(entry.name))
    yield from others


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def executable(pid: int) -> str:
    """Path of the executable of ``pid``, under its old name where the file was deleted; "" where it cannot be read."""
    return _target(f"/proc/{pid}/exe").removesuffix(" (deleted)")


def supplementary(pid: int, uid: int) -> tuple[int, ...]:
    """Primary and supplementary groups of ``pid`` as long as it still runs as ``uid``; else none."""
    fields: dict[str, list[str]] = {}
    try:
        with open(f"/proc/{pid}/status") as status:
            for line in status:
                name, _, rest = line.partition(":")
                fields[name] = rest.split()
    except OSError:
        return ()
    if str(uid) not in fields.get("Uid", []):
        return ()
    primary = int(fields["Gid"][3])
    return (primary, *(int(gid) for gid in fields.get("Groups", []) if int(gid) != primary))
