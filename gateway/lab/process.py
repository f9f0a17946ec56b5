"""A program started on a lab host: its output in files, its children in its own cgroup."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.lab import cgroup
from gateway.lab.netns import LabError, Place

# The shell puts itself into the group before it becomes the program: no moment outside.
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_count = itertools.count(1)


@dataclass(frozen=True)
class User:
    """Numeric identity for a program; ``groups`` are its supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a finished program left: exit code (negative: the signal), output, errors, seconds it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def ok(self) -> bool:
        return self.code == 0

    def json(self) -> Any:
        """Standard output as JSON; raises :class:`LabError` with all there is if it is none."""
        try:
            return json.loads(self.out)
        except ValueError:
            raise LabError(f"exit {self.code}, no JSON on standard output: {self.out!r} {self.err!r}") from None


class Process:
    """A running program. ``out`` and ``err`` are the files of its output, ``group`` its cgroup, ``pid`` its number."""

    def __init__(self, popen: subprocess.Popen[bytes], name: str, out: Path, err: Path, group: Path) -> None:
        self._popen = popen
        self._started = time.monotonic()
        self.name = name
        self.out = out
        self.err = err
        self.group = group
        self.pid = popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def wait(self, timeout: float = 30) -> Result:
        """The result, once the program has ended; after ``timeout`` s it is killed and :class:`LabError` raised."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"{self.name}: no end after {timeout} s\n{self.told()}") from None
        seconds = time.monotonic() - self._started
        return Result(code, self.out.read_text(errors="replace"), self.err.read_text(errors="replace"), seconds)

    def signal(self, number: int) -> None:
        """Send a signal to the program itself; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def stop(self, timeout: float = 10) -> Result:
        """SIGTERM, then the result; SIGKILL and :class:`LabError` after ``timeout`` seconds."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> None:
        """SIGKILL for the program and whatever it started."""
        self.signal(signal.SIGKILL)  # by its number too: the shell may not have entered the group yet
        cgroup.kill(self.group)
        self._popen.wait(10)

    def reap(self) -> None:
        """Collect a program that was killed by its cgroup, so that no zombie stays."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(5)

    def told(self, limit: int = 2000) -> str:
        """The end of its output and errors, for messages."""
        parts = [file.read_text(errors="replace")[-limit:].strip() for file in (self.out, self.err)]
        return "\n".join(part for part in parts if part)


def start(
    place: Place,
    group: Path,
    folder: Path,
    command: Sequence[str | Path],
    user: User | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: str | Path | None = None,
    within: Path | None = None,
) -> Process:
    """Start ``command`` at ``place``, in a new cgroup below ``group``, with files of output in ``folder``.

    ``within``: a cgroup that is there, shared with others, in place of the new one. ``environment`` is added to the
    present one. ``stdin`` is given through a file. OSError if /bin/sh cannot start;
    a command that does not exist ends with code 127.
    """
    words = [str(word) for word in command]
    name = f"{Path(words[0]).name}-{os.getpid()}-{next(_count)}"
    own = within or group / name
    own.mkdir(parents=True, exist_ok=within is not None)
    out, err, fed = (folder / f"{name}.{end}" for end in ("out", "err", "in"))
    fed.write_bytes(stdin or b"")
    if user is not None:
        groups = ["--groups", ",".join(map(str, user.groups))] if user.groups else ["--clear-groups"]
        words = ["setpriv", "--reuid", str(user.uid), "--regid", str(user.gid), *groups, "--", *words]
    where = str(cwd or os.getcwd())

    def launch() -> subprocess.Popen[bytes]:
        with fed.open("rb") as source, out.open("wb") as sink, err.open("wb") as complaint:
            return subprocess.Popen(
                ["/bin/sh", "-c", ENTER, str(own), *words],
                stdin=source,
                stdout=sink,
                stderr=complaint,
                cwd=where,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    return Process(place.call(launch), Path(str(command[0])).name, out, err, own)
