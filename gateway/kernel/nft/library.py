"""libnftables in this process: whole rulesets as text, one string one atomic transaction.

Debian's ``python3-nftables`` (a ctypes binding). Its netlink socket is opened without CLOEXEC: it is set here at once,
because an owned table lives as long as any copy of that descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

from gateway.core.errors import KernelError
from gateway.kernel import descriptors, shipped
from gateway.kernel.nft.message import NETLINK_NETFILTER

DEBIAN = "/usr/lib/python3/dist-packages"
OWNER = "\tflags owner\n"


def folder() -> Path:
    """Where the ``.nft`` files are."""
    return shipped.folder("nft", "base.nft")


class Library:
    """One libnftables context. Raises KernelError where the library is missing.

    A context remembers every ``define`` it has read and refuses the same one again: a file with defines is loaded
    once by each context. ``fd`` is its netlink socket, for raw messages between two calls of ``run``; whether it blocks
    must not be changed. ``first``: it is to be closed before all other files when the process is killed, as the socket
    of an owned table: a packet socket (DHCP) and programs of BPF wait for all processors before they are gone, and
    while nobody serves the listeners and the table stands, what it sends them is lost."""

    def __init__(self, *, first: bool = False) -> None:
        self._nft: Any = None
        self.fd = -1
        try:
            module = _module()
            with descriptors.low(first=first):
                before = _sockets()
                self._nft = module.Nftables()
                new = _sockets() - before
        except ImportError as error:
            raise KernelError("libnftables", 0, f"{error}; install python3-nftables") from None
        except OSError as error:
            raise KernelError("libnftables", error.errno or errno.EIO) from error
        for fd, _ in new:
            if _is_netfilter(fd):
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
                self.fd = fd
        if self.fd < 0:
            raise KernelError("libnftables", errno.EMFILE, f"opened no netlink socket below {descriptors.SELECT}")

    def run(self, text: str, *, check: bool = False) -> str:
        """Load ``text``, or with ``check`` only see whether the kernel would take it. Returns what it printed. Raises
        KernelError with nft's own words."""
        self._nft.set_dry_run(check)
        # A signal while it waits for the kernel's answers looks like a refusal to it (select does not go on), and the
        # rules are in force.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            status, output, error = self._nft.cmd(text)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if status:
            raise KernelError("nft", 0, str(error).strip() or f"status {status}")
        return str(output)

    def close(self) -> None:
        """Frees the context and with it the socket: an owned table of its goes. Any number of times."""
        self._nft = None
        self.fd = -1
        descriptors.keep()

    def __del__(self) -> None:
        self.close()


def owners(library: Library) -> bool:
    """Whether the kernel knows ``flags owner`` (Linux 5.12): False only where it takes a table and refuses the same one
    with an owner."""
    for flags, verdict in ((OWNER, True), ("", False)):
        try:
            library.run(f"table inet gateway_probe {{\n{flags}}}\n", check=True)
            return verdict
        except KernelError:
            continue
    return True


def _is_netfilter(fd: int) -> bool:
    # Another thread may have opened a socket meanwhile, or closed it.
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    found = sock.family == socket.AF_NETLINK and sock.proto == NETLINK_NETFILTER
    sock.detach()
    return found


def _sockets() -> set[tuple[int, int]]:
    """Those that libnftables can use, with their inodes. Opens no file."""
    found = set()
    for fd in range(descriptors.SELECT):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        if stat.S_ISSOCK(status.st_mode):
            found.add((fd, status.st_ino))
    return found


def _module() -> Any:
    try:
        import nftables
    except ImportError:
        # A virtual environment without system packages: only this one module is taken from there.
        sys.path.append(DEBIAN)
        import nftables
    return nftables
