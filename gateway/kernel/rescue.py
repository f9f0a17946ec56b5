"""A small child that undoes what the gateway has made, unless it is told in time that there is no need.

It outlives the gateway, however that ends, and ends it where it hangs: its program, deadline.py, holds the read end of
a pipe whose write end only the gateway has, and a descriptor of the gateway's process. It inherits nothing else but
standard error, has a session of its own, and runs without site packages (9 MB); what undoes is loaded when it is due.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.core.errors import KernelError
from gateway.kernel import deadline

GRACE = 15.0
"""Seconds in which the gateway may end and undo by itself; then it is killed."""


class Rescue:
    """Starts the child, in the network namespace of the calling thread, and waits until it is ready. ``until``: the
    deadline, in seconds of CLOCK_BOOTTIME. ``folder``: there is something to undo as long as it is there. ``command``:
    the program that undoes, ``search``: where it finds its modules. Raises KernelError."""

    def __init__(self, until: float, folder: Path, command: Sequence[str], search: Path) -> None:
        self.process = -1
        """A descriptor that is readable once the child is gone."""
        read, self._write = os.pipe2(os.O_CLOEXEC)
        path = os.environ.get("PATH", "")
        program = str(Path(deadline.__file__).resolve())
        words = [str(os.getpid()), str(until), str(GRACE), str(folder), *command]
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", program, *words],
                stdin=read,
                stdout=subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env={"PATH": path, "PYTHONPATH": str(search)},
            )
        except OSError as error:
            os.close(self._write)
            raise KernelError("start the child that undoes", error.errno or 0) from error
        finally:
            os.close(read)
        assert self._child.stdout is not None
        with self._child.stdout as ready:
            if ready.read(1) != b"r":
                self.dismiss()
                raise KernelError("start the child that undoes")
        self.process = os.pidfd_open(self._child.pid)

    @property
    def pid(self) -> int:
        return self._child.pid

    def dismiss(self) -> None:
        """There is nothing to undo: it ends. Any number of times."""
        if self._write < 0:
            return
        try:
            os.write(self._write, deadline.DONE)
        except OSError:  # somebody has killed it
            pass
        os.close(self._write)
        self._write = -1
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self.process >= 0:
            os.close(self.process)
