"""By which remote login a process came: the connection of its session, and when that began.

Not the session of setsid(2): sudo, script and each window of tmux begin one, and what tmux or setsid has put into the
background leads back to no login at all. What proves that somebody can come in is a connection, and it belongs to one
process: the oldest of those that begot the caller which holds a connection that was made to this host. (It is the
process that sshd makes for each connection; the shells of a client that shares one among several sessions are below the
same.) Sources: proc(5), /proc/PID/stat, /proc/net/tcp.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import NamedTuple

from gateway.core.address import IP

ESTABLISHED, LISTENS = "01", "0A"
"""Column ``st`` of /proc/net/tcp."""
SERVERS = frozenset(("sshd", "sshd-session", "dropbear"))
"""Names of the processes of which each serves one login connection, or waits for some."""
DEPTH = 256
"""Processes between a caller and the first process of the system; who is further down has no login."""


class Login(NamedTuple):
    """A connection that somebody has come in by."""

    pid: int
    """The process that serves it."""
    started: float
    """When it began: seconds of CLOCK_BOOTTIME, rounded down to a hundredth."""
    peer: IP
    """The other end."""


class Row(NamedTuple):
    """A TCP socket."""

    state: str
    port: int
    local: IP
    peer: IP


def login(pid: int, proc: Path = Path("/proc")) -> Login | None:
    """Of process ``pid``; None where no connection from another host leads to it: a console, a service, a terminal
    multiplexer, a connection from this host to itself. Raises nothing."""
    found = None
    for number in lineage(pid, proc):
        if (peer := _peer(number, proc)) is not None:
            found = Login(number, started(number, proc), peer)
    return found


def lineage(pid: int, proc: Path = Path("/proc")) -> Iterator[int]:
    """``pid``, its parent and so on; without the first process of the system."""
    for _ in range(DEPTH):
        if pid <= 1:
            return
        yield pid
        fields = _stat(pid, proc)
        pid = int(fields[1]) if fields else 0


def started(pid: int, proc: Path = Path("/proc")) -> float:
    """Seconds of CLOCK_BOOTTIME; 0 where it is gone."""
    fields = _stat(pid, proc)
    return int(fields[19]) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _stat(pid: int, proc: Path) -> list[str]:
    """Fields from the third on (state, parent ...); the second one, a name, may hold anything."""
    try:
        return (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _peer(pid: int, proc: Path) -> IP | None:
    """The other end of the connection to a listening port of this host that the process holds, if that is another host;
    None for who listens himself."""
    folder, inodes = proc / str(pid), set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder / "fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(folder / "fd" / name)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    if not inodes:
        return None
    rows = dict(_sockets(folder / "net"))
    own = [rows[inode] for inode in inodes if inode in rows]
    if any(row.state == LISTENS for row in own):
        return None
    ports = {row.port for row in rows.values() if row.state == LISTENS}
    for row in own:
        if row.state == ESTABLISHED and row.port in ports and not row.peer.is_loopback and row.peer != row.local:
            return row.peer
    return None


def _sockets(folder: Path) -> Iterator[tuple[str, Row]]:
    """TCP sockets of a network namespace by inode."""
    for table in ("tcp", "tcp6"):
        try:
            lines = (folder / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            words = line.split()
            if len(words) > 9 and words[3] in (ESTABLISHED, LISTENS):
                (local, port), (peer, _) = _end(words[1]), _end(words[2])
                yield words[9], Row(words[3], port, local, peer)


def _end(text: str) -> tuple[IP, int]:
    """An address, in words of the machine's byte order, and a port."""
    digits, _, port = text.partition(":")
    packed = struct.pack(f"={len(digits) // 8}I", *(int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)))
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    found = IPv6Address(packed)
    return found.ipv4_mapped or found, int(port, 16)


class Sessions:
    """Other hosts that have a connection to a login server of this network namespace. Of one thread at a time."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._servers: frozenset[int] = frozenset()
        self._peers: frozenset[IP] = frozenset()

    def look(self) -> frozenset[IP]:
        """As of now. Sockets are read where processes have come or gone: each connection has one. Raises nothing."""
        servers = frozenset(self._find())
        if servers != self._servers:
            found = (_peer(pid, self._proc) for pid in servers)
            self._servers, self._peers = servers, frozenset(ip for ip in found if ip is not None)
        return self._peers

    def _find(self) -> Iterator[int]:
        home = self._namespace("self")
        for name in os.listdir(self._proc):
            if name.isdecimal():
                with contextlib.suppress(OSError):
                    if (self._proc / name / "comm").read_text().strip() in SERVERS and self._namespace(name) == home:
                        yield int(name)

    def _namespace(self, name: str) -> int:
        return os.stat(self._proc / name / "ns/net").st_ino


__all__ = ["Login", "Sessions", "lineage", "login", "started"]
