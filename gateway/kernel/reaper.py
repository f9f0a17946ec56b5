"""A small child that outlives the gateway: when the gateway is gone, however it went, it deletes the conntrack entries
of flows that were delivered to userspace.

Such an entry has no NAT: a client that goes on using it would leave the uplink with its private address for ever. The
child holds the read end of a pipe whose write end only the gateway has, a descriptor of the gateway's process, and one
nfnetlink socket of its own; it inherits nothing else, so it cannot keep the owned table alive. It runs without site
packages (9 MB, 20 ms): watcher.py.

Over the pipe the gateway's event loop says each second that it turns. Once it does not, the gateway holds the LAN's
flows and serves none: the child kills it, so that the failure policy takes effect.

The *keeper* is the same child told to do the contrary of the last: given descriptors of the owned table's socket and of
the process programs' links, it stays and holds them, and what the kernel has been taught to decide it goes on deciding.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.core.errors import KernelError
from gateway.kernel import conntrack, watcher

EXIT = 60.0
"""Seconds in which a dying gateway has closed its last descriptor: its pipe may close long before the owned table does
(programs on interfaces take their time), and a packet between makes an entry anew. So entries are deleted at once, and
again when the process is gone."""
LATE = 0.02
"""Seconds after which they are deleted once more: a processor may have been inside the table as it went. Short, so that
the flows of a successor are not hit."""


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
    """Starts the child, in the network namespace of the calling thread, and waits until it is ready. ``silent``:
    seconds without a beat after which it kills this process, 0 never; the first one may take two minutes. ``request``:
    the datagram that deletes. Raises KernelError."""

    def __init__(self, will: Will | None = None, silent: int = 0, request: bytes = conntrack.USERSPACE) -> None:
        self.will = will or Will()
        self.silent = silent
        self._request = request
        try:
            read, self._write = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise KernelError("start the reaper", error.errno or 0) from error
        os.set_blocking(self._write, False)  # a child that is stopped must not stop us
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
        program = str(Path(watcher.__file__).resolve())
        return (sys.executable, "-I", "-S", program, *asked, str(self.silent), str(EXIT), str(LATE))

    @property
    def pid(self) -> int:
        return self._child.pid

    def beat(self, patience: bool = False) -> bool:
        """Say that this process does its work; the next beat comes in a second, or with ``patience`` in two minutes at
        most. False where the child is gone."""
        return self._tell(watcher.PATIENCE if patience else watcher.BEAT)

    def _tell(self, word: bytes) -> bool:
        try:
            os.write(self._write, word)
        except BlockingIOError:
            pass  # it is stopped, and has an hour's beats before it
        except OSError:  # it was killed
            return False
        return True

    def close(self) -> None:
        """Let it do its work now, the table being gone, and wait for it. A keeper, whose table stands, is left to
        itself: it waits until this process and its listeners are gone too."""
        if self._write < 0:
            return
        if not self.will.name:
            self._tell(watcher.DONE)
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
