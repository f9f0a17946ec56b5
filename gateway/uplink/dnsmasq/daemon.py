"""The dnsmasq process: started detached, adopted by the next start, watched while we live, stopped by ``down`` only.

It is known by its command line: the path of its configuration file is of this instance alone. So a process whose pid
was never written down (we were killed in between) is found as well, and a number used again by another process is not
taken for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.uplink.dnsmasq import render

log = logging.getLogger(__name__)

RESTART = (1.0, 30.0)
"""First and longest pause before a dnsmasq that died is started again."""
STEADY = 3.0
"""Seconds after which a dnsmasq that is started again counts as running."""
HEALTHY = 60.0
"""Seconds it must have run for the pause to start small again."""
KILL_WAIT = 5.0


def find(argument: str) -> list[int]:
    """Processes of this network namespace with exactly ``argument`` on their command line, but not this one."""
    found = []
    home = os.stat("/proc/thread-self/ns/net").st_ino
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if argument.encode() in words[1:] and (entry / "ns/net").stat().st_ino == home:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def undo(step: dict[str, Any]) -> None:
    """Do the inverse ``{"kind": "process", "op": "kill", "argument"}``: end the processes that have this argument, and
    wait until they are gone. None there is success. Blocks up to ``KILL_WAIT`` seconds. Raises KernelError."""
    end = time.monotonic() + KILL_WAIT
    number = signal.SIGTERM
    while pids := find(step["argument"]):
        if time.monotonic() > end:
            if number == signal.SIGKILL:
                raise KernelError(f"kill {pids}", 0, "the process does not end")
            number, end = signal.SIGKILL, time.monotonic() + KILL_WAIT
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
            _reap(pid)
        time.sleep(0.02)


def installed() -> str:
    """Raises KernelError."""
    program = shutil.which("dnsmasq", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not program:
        raise KernelError("dnsmasq", 0, "it is not installed (package dnsmasq-base)")
    return program


def spawn(program: str, argument: str, errors: str | Path = os.devnull) -> int:
    """Start it with ``argument``, detached; its number. ``errors``: the file for what it says on standard error. Raises
    KernelError."""
    try:
        with open(errors, "wb") as file:
            child = subprocess.Popen(
                [program, "--keep-in-foreground", argument],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise KernelError("start dnsmasq", error.errno or 0) from error
    # It outlives us on purpose: no warning that it was not waited for.
    child.returncode = 0
    return child.pid


def argument_of(run: Path) -> str:
    """The word by which the dnsmasq of the instance with this run folder is known."""
    return f"--conf-file={run / 'dnsmasq/dnsmasq.conf'}"


class Daemon:
    """``run``: folder of this instance's run files; dnsmasq reads its servers there after it has dropped its rights,
    so the folder must be passable (0711 or wider). ``state``: where the lease file stays over a reboot. ``cgroup``:
    a cgroup2 folder to put the process into, so that nft can tell its queries by ``socket cgroupv2``; None = none."""

    def __init__(
        self,
        run: Path,
        state: Path,
        record: Callable[[dict[str, Any]], None],
        *,
        program: str = "",
        cgroup: Path | None = None,
    ) -> None:
        self.folder = run / "dnsmasq"
        self.config = self.folder / "dnsmasq.conf"
        self.servers = self.folder / "resolv.conf"
        self.leases = state / "dnsmasq.leases"
        self.errors = self.folder / "errors"
        self.pid = 0
        self.problem = ""
        """Why it does not run, for a person; "" where it does."""
        self._argument = argument_of(run)
        self._record = record
        self._program = program
        self._cgroup = cgroup
        self._recorded = False
        self._text = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self, text: str) -> None:
        """Run dnsmasq with the configuration ``text``: adopt one that has it, else replace it. Watch it from now.
        Raises KernelError where dnsmasq is not installed or refuses the configuration."""
        await self.stop()
        self.problem = ""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.leases.parent.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        same = _read(self.config) == text
        self._text = text
        pids = find(self._argument)
        if not self._recorded:
            self._record({"kind": "process", "op": "kill", "argument": self._argument})
            self._recorded = True
        if same and len(pids) == 1:
            self.pid = pids[0]
            log.info("dnsmasq %d adopted", self.pid)
        else:
            await asyncio.to_thread(undo, {"argument": self._argument})
            _write(self.config, text)
            await self._check()
            self._spawn()
        self._task = asyncio.create_task(self._watch(), name="dnsmasq")

    async def stop(self) -> None:
        """Stop watching; dnsmasq runs on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def set_servers(self, servers: Iterable[IP]) -> None:
        """Upstream servers from now. None keeps the last ones: an old server may still answer, no server never does."""
        text = render.upstream(servers)
        if not text or _read(self.servers) == text:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.servers, text)
        except OSError as error:
            log.warning("%s: %s", self.servers, error)
        # It sees the file change by itself; the signal makes it forget answers of the old servers.
        if self.pid and self.pid in find(self._argument):
            os.kill(self.pid, signal.SIGHUP)

    async def _check(self) -> None:
        program = self._executable()
        check = await asyncio.create_subprocess_exec(
            program, "--test", self._argument, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, message = await check.communicate()
        if check.returncode:
            raise KernelError("dnsmasq configuration", 0, message.decode(errors="replace").strip())

    def _executable(self) -> str:
        return self._program or installed()

    def _spawn(self) -> None:
        self.pid = spawn(self._executable(), self._argument, self.errors)
        if self._cgroup is not None:
            try:
                (self._cgroup / "cgroup.procs").write_text(str(self.pid))
            except OSError as error:
                log.warning("%s: %s", self._cgroup, error)
        log.info("dnsmasq %d started", self.pid)

    async def _watch(self) -> None:
        pause = RESTART[0]
        while True:
            began, steady = time.monotonic(), False
            try:
                async with asyncio.timeout(STEADY):
                    await _gone(self.pid)
            except TimeoutError:
                steady, self.problem = True, ""
                await _gone(self.pid)
            self.problem = "it has ended" if steady else f"it ends as soon as it is started: {_last(self.errors)}"
            pause = RESTART[0] if time.monotonic() - began > HEALTHY else min(pause * 2, RESTART[1])
            log.warning("dnsmasq %d: %s; again in %.0f s", self.pid, self.problem, pause)
            await asyncio.sleep(pause)
            while not self._again():
                pause = min(pause * 2, RESTART[1])
                await asyncio.sleep(pause)

    def _again(self) -> bool:
        try:
            self._spawn()
        except (KernelError, OSError) as error:
            self.problem = str(error)
            log.warning("%s", error)
            return False
        return True


async def _gone(pid: int) -> None:
    """Returns when the process has ended; a child is reaped."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    ended = loop.create_future()

    def readable() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(fd, readable)
    try:
        await ended
        _reap(pid)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:  # adopted: not ours to wait for
        pass


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _last(path: Path) -> str:
    """Its last line."""
    return next((line for line in reversed(_read(path).splitlines()) if line.strip()), "without a word")


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.chmod(0o644)
    os.replace(temporary, path)
