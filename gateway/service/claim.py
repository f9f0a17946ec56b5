"""One process for each instance, and one instance with a ``gateway`` object for each network namespace.

The process that is the instance holds a lock (flock(2)) on ``RUN/INSTANCE/lock``, and with it the right to the journal
beside it. It is gone with the process, however that ends. In it stands which network namespace is taken: tables, ip
rules and marks are the same for every instance, and two would take them from each other. A ``tun`` inbound takes the
first table that is free, so that those need not be alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.core.errors import GatewayError

NAME = "lock"


class Claimed(GatewayError):
    """It is another process's."""


class Claim:
    """``folder`` is the run folder of the instance, made where it is not there. ``alone``: no other one that is so may
    run in this network namespace. Raises Claimed, and GatewayError where the folder cannot be written."""

    def __init__(self, folder: Path, *, alone: bool = False) -> None:
        self._folder = folder
        space = str(os.stat("/proc/self/ns/net").st_ino) if alone else ""
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _turn(folder.parent):
                if alone:
                    self._refuse_second(space)
                folder.mkdir(exist_ok=True)
                self._fd = os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if not _lock(self._fd):
                    os.close(self._fd)
                    raise Claimed(f'instance "{folder.name}" runs already, or is just being undone')
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, space.encode(), 0)
        except OSError as error:
            raise GatewayError(f"{folder}: {error.strerror}") from error

    def _refuse_second(self, space: str) -> None:
        for other in self._folder.parent.glob(f"*/{NAME}"):
            name = other.parent.name
            if name != self._folder.name and _held(other) and other.read_text() == space:
                raise Claimed(
                    f'instance "{name}" runs in this network namespace, where there can be one with a "gateway" '
                    f"object (gateway down --instance {name})"
                )

    def release(self, *, forget: bool = False) -> None:
        """Let others have it; its folder goes if it is empty, or with ``forget`` with all that is in it. Raises
        nothing. Once."""
        try:
            with _turn(self._folder.parent):
                if forget:
                    shutil.rmtree(self._folder, ignore_errors=True)
                else:
                    (self._folder / NAME).unlink(missing_ok=True)
                    self._folder.rmdir()
        except OSError:
            pass  # not empty: what stands is in its journal
        finally:
            os.close(self._fd)


@contextmanager
def _turn(run: Path) -> Iterator[None]:
    """One process at a time takes and releases: no lock is on a file that is just removed."""
    fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _held(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(fd)
    finally:
        os.close(fd)
