"""A small child that outlives the gateway: when the gateway is gone, however it went, it deletes the conntrack entries
of flows that were delivered to userspace.

Such an entry has no NAT: a client that goes on using it would leave the uplink with its private address for ever. The
child holds the read end of a pipe whose write end only the gateway has, a descriptor of the gateway's process, and one
nfnetlink socket of its own; it inherits nothing else, so it cannot keep the owned table alive. It runs without site
packages (9 MB, 20 ms).

The *keeper* is the same child told to do the contrary of the last: given descriptors of the owned table's socket and of
the process programs' links, it stays and holds them, and what the kernel has been taught to decide it goes on deciding.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.core.errors import KernelError
from gateway.kernel import conntrack

EXIT = 60.0
"""Seconds in which a dying gateway has closed its last descriptor: its pipe may close long before the owned table does
(programs on interfaces take their time), and a packet between makes an entry anew. So entries are deleted at once, and
again when the process is gone."""
LATE = 0.02
"""Seconds after which they are deleted once more: a processor may have been inside the table as it went. Short, so that
the flows of a successor are not hit."""

_SCRIPT = """
import os, select, signal, socket, sys, time
for number in (signal.SIGINT, signal.SIGHUP) + (() if sys.argv[1] else (signal.SIGTERM,)):
    signal.signal(number, signal.SIG_IGN)
name, last, into, request, gateway, exit, late = sys.argv[1:]
last, request = bytes.fromhex(last), bytes.fromhex(request)
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((0, 0))
sock.settimeout(5)
def delete():
    sock.send(request)
    sock.recv(4096)
try:
    process = os.pidfd_open(int(gateway))
except OSError:
    process = -1
if os.getppid() != int(gateway):
    process = -1
os.write(1, b"r")
os.close(1)
told = b""
while word := os.read(0, 64):
    told = word
if last:
    os.write(sock.fileno() if into == "-1" else int(into), last)
delete()
if process >= 0 and not told:
    select.select([process], [], [], float(exit))
    delete()
time.sleep(float(late))
delete()
while name:
    signal.pause()
"""


@dataclass(frozen=True, slots=True)
class Will:
    """What is done at the end beside the deletions. ``last``: one nfnetlink datagram, written to the descriptor
    ``into`` of ``held``; -1 is a socket of the child's own. ``name``: stay until SIGTERM and keep ``held``; the word
    stands alone on the command line, by which the keeper is found again."""

    last: bytes = b""
    into: int = -1
    held: tuple[int, ...] = ()
    name: str = ""


class Reaper:
    """Starts the child, in the network namespace of the calling thread, and waits until it is ready. ``request``: the
    datagram that deletes. Raises KernelError."""

    def __init__(self, will: Will | None = None, request: bytes = conntrack.USERSPACE) -> None:
        self.will = will or Will()
        self._request = request
        read, self._write = os.pipe2(os.O_CLOEXEC)
        try:
            self._child = subprocess.Popen(
                self._words(self.will),
                stdin=read,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                close_fds=True,
                pass_fds=self.will.held,
                start_new_session=True,
                cwd="/",
                env={},
            )
        except OSError as error:
            os.close(self._write)
            raise KernelError("start the reaper", error.errno or 0) from error
        finally:
            os.close(read)
        assert self._child.stdout is not None
        with self._child.stdout as ready:
            if ready.read(1) != b"r":
                self.end()
                raise KernelError("start the reaper")

    def _words(self, will: Will) -> Sequence[str]:
        asked = (will.name, will.last.hex(), str(will.into), self._request.hex(), str(os.getpid()))
        return (sys.executable, "-I", "-S", "-c", _SCRIPT, *asked, str(EXIT), str(LATE))

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self) -> None:
        """Let it do its work now, the table being gone, and wait for it. A keeper, whose table stands, is left to
        itself: it waits until this process and its listeners are gone too."""
        if self._write < 0:
            return
        if not self.will.name:
            with contextlib.suppress(OSError):  # it was killed
                os.write(self._write, b"x")
        os.close(self._write)
        self._write = -1
        if self.will.name:
            self._child.returncode = 0  # it outlives us on purpose: no warning that it was not waited for
            return
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def end(self) -> None:
        """End it without its work being done: another has taken its place. Any number of times."""
        if self._write >= 0:
            self._child.kill()
            self._child.wait()
            os.close(self._write)
            self._write = -1
