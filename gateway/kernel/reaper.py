"""A small child that outlives the gateway by a moment: when the gateway is gone, however it went, it deletes the
conntrack entries of flows that were delivered to userspace.

Such an entry has no NAT: a client that goes on using it would leave the uplink with its private address for ever. The
child holds the read end of a pipe whose write end only the gateway has, and one nfnetlink socket of its own; it
inherits nothing else, so it cannot keep the owned table alive. It runs without site packages (9 MB, 20 ms).
"""

from __future__ import annotations

import os
import subprocess
import sys

from gateway.core.errors import KernelError
from gateway.kernel import conntrack

PASSES = (0.0, 0.02, 0.1)
"""Seconds to wait before each deletion: the pipe may close before the owned table does, and a packet between would
make an entry anew. Short, so that the flows of a successor are not hit."""

_SCRIPT = """
import os, signal, socket, sys, time
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
request, passes = bytes.fromhex(sys.argv[1]), [float(word) for word in sys.argv[2:]]
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
sock.bind((0, 0))
sock.settimeout(5)
os.write(1, b"r")
os.close(1)
while os.read(0, 64):
    pass
for pause in passes:
    time.sleep(pause)
    sock.send(request)
    sock.recv(4096)
"""


class Reaper:
    """Starts the child, in the network namespace of the calling thread, and waits until it is ready. Raises
    KernelError."""

    def __init__(self) -> None:
        words = [sys.executable, "-I", "-S", "-c", _SCRIPT, conntrack.USERSPACE.hex(), *map(str, PASSES)]
        read, self._write = os.pipe2(os.O_CLOEXEC)
        try:
            self._child = subprocess.Popen(
                words,
                stdin=read,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                close_fds=True,
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
                self.close()
                raise KernelError("start the reaper")

    @property
    def pid(self) -> int:
        return self._child.pid

    def close(self) -> None:
        """Let it do its work now, and wait for it (0.2 s)."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
