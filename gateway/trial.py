"""``gateway run --trial``: a network that is undone unless somebody shows in time that he can come in again.

Before anything is changed it is written down what stands (``RUN/trial``), and a child is started that holds the
deadline (``kernel/rescue.py``). As long as that folder is there the trial is on. ``confirm`` takes it away; whoever
else ends the trial (the gateway itself at its deadline or end, the child where it was killed or hung, the next start,
``down``) leads back to what stood before with ``rollback``, which may be done again where it was interrupted.

Run as a module it is the program that the child becomes: ``python -m gateway.trial RUN LOG``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gateway
from gateway.core.errors import GatewayError, KernelError
from gateway.host import executors
from gateway.kernel import conntrack, journal, sysctl
from gateway.kernel.clock import boottime
from gateway.kernel.journal import NAME, TRIAL
from gateway.kernel.login import Login, login
from gateway.kernel.netlink import stood
from gateway.kernel.nft import base
from gateway.kernel.nft.library import Library
from gateway.kernel.rescue import Rescue
from gateway.service.claim import Claim, Claimed
from gateway.uplink.dnsmasq import daemon

SECONDS = 120
"""Of a trial, where nothing is said."""
LEAST, MOST = 5, 86400
LATE = 1.0
"""Seconds before the deadline from which it is too late to confirm: the child must have heard of it by then."""
UNCONFIRMED = 3
"""Exit status of ``gateway run`` where the trial was not confirmed, and all is as before."""
PATIENCE = 60.0
"""Seconds in which whoever is undoing the same is done."""
FOLLOWERS = ("net/ipv4/conf/*/forwarding", "net/ipv6/conf/*/forwarding", "net/ipv4/conf/*/accept_redirects")
"""Parameters that the kernel changes of every interface when forwarding is switched on or off."""

log = logging.getLogger("gateway.trial")


class Trial:
    """Begins one: to be made before anything is changed, in the network namespace of the calling thread. ``run`` is the
    run folder of the instance, which the caller has claimed; ``where`` the file of the log, "" for standard error.
    Raises GatewayError, OSError; nothing is left then."""

    def __init__(self, run: Path, seconds: float, where: str = "") -> None:
        self.seconds = seconds
        self.until = boottime() + seconds
        """The deadline, in seconds of CLOCK_BOOTTIME."""
        self.confirmed = False
        self._run = run
        try:
            _remember(run)
            flags = ["-B"] if sys.dont_write_bytecode else []
            words = [sys.executable, "-P", *flags, "-m", "gateway.trial", str(run), where]
            self._rescue = Rescue(self.until, run / TRIAL, words, Path(gateway.__file__).resolve().parents[1])
        except (KernelError, OSError):
            for name in (TRIAL, f"{TRIAL}.new"):
                shutil.rmtree(run / name, ignore_errors=True)
            raise
        log.warning(
            "a trial of %.0f s: gateway confirm, from a connection that is opened from now on, keeps it", seconds
        )

    def watch(self, end: Callable[[], None]) -> None:
        """Call ``end`` should somebody kill the child: nobody would undo what a dead gateway leaves. In the running
        loop."""

        def gone() -> None:
            asyncio.get_running_loop().remove_reader(self._rescue.process)
            log.error("the child that holds the deadline of the trial was killed: the trial ends")
            end()

        asyncio.get_running_loop().add_reader(self._rescue.process, gone)

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.until - boottime())

    def confirm(self, pid: int, here: bool, changed: float) -> None:
        """Keep what was made, if process ``pid`` shows that somebody has come in since ``changed`` (seconds of
        CLOCK_BOOTTIME, when the network was changed last), or says with ``here`` that he sits at the machine. Raises
        GatewayError."""
        if self.left < LATE:
            raise GatewayError("too late: the trial is being undone")
        if not here and (why := refusal(login(pid), changed)):
            raise GatewayError(why)
        over = self._run / f"{TRIAL}.over"
        os.rename(self._run / TRIAL, over)
        self.confirmed = True
        asyncio.get_running_loop().remove_reader(self._rescue.process)
        self._rescue.dismiss()
        shutil.rmtree(over, ignore_errors=True)
        log.warning("the trial is confirmed: the gateway stays")

    async def undo(self) -> list[str]:
        """After the gateway has ended its part. Returns what could not be undone, a line each: the child then tries it
        once more when this process is gone."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._rescue.process)
        why = "it ended" if self.left else f"nobody confirmed it within {self.seconds:.0f} s"
        log.warning("the trial is undone: %s", why)
        failed = await rollback(self._run)
        if not failed:
            self._rescue.dismiss()
            log.warning("all is as it was before the trial")
        return failed


def refusal(came: Login | None, changed: float) -> str:
    """Why a session that ``came`` so does not show that somebody can come in since ``changed``; "" where it does."""
    if came is None:
        return (
            "no connection from outside leads to this session, as at a console, in a service, or inside tmux or screen "
            "(whose windows belong to no connection): open a new SSH connection and run `gateway confirm` in its first "
            "shell; if you sit at the machine itself, `gateway confirm --here`"
        )
    if came.started < changed:
        return (
            f"this session's connection (from {came.peer}) is older than the last change of the network, so it does "
            f"not show that you can come in again: open a second connection and run `gateway confirm` there"
        )
    return ""


def _remember(run: Path) -> None:
    """What stands now, in ``RUN/trial``, which is there as a whole or not at all."""
    draft = run / f"{TRIAL}.new"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    if (run / NAME).exists():
        shutil.copy2(run / NAME, draft / "before.jsonl")
    stood.save(draft / "network.json")
    (draft / "base.nft").write_text(base.shown(Library()))
    followers = {name: sysctl.read(name) for name in _followers()}
    (draft / "settings.json").write_text(json.dumps({"head": journal.head(), "followers": followers}))
    if pids := daemon.find(daemon.argument_of(run)):
        served = draft / "dnsmasq"
        served.mkdir()
        (served / "pids").write_text(json.dumps(pids))
        for name in ("dnsmasq.conf", "resolv.conf"):
            if (run / "dnsmasq" / name).exists():
                shutil.copy2(run / "dnsmasq" / name, served / name)
    os.rename(draft, run / TRIAL)


def _followers() -> list[str]:
    """Those of all interfaces first: they change the others."""
    found = [str(path.relative_to(sysctl.ROOT)) for pattern in FOLLOWERS for path in sysctl.ROOT.glob(pattern)]
    return sorted(found, key=lambda name: "/all/" not in name)


async def finish(run: Path) -> list[str]:
    """Undo a trial whose gateway and child are both gone. Returns what could not be undone, a line each."""
    if not (run / TRIAL).is_dir():
        return []
    log.warning("a trial that was never confirmed is undone")
    return await rollback(run)


async def rollback(run: Path) -> list[str]:
    """Lead back to what stood before the trial of this instance, which the caller has claimed. Returns what could not
    be undone, a line each; ``RUN/trial`` then stays for the next try."""
    folder = run / TRIAL
    settings = _settings(folder)
    if settings.get("head") != journal.head():
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier boot, or of another network
        return []
    served, argument = folder / "dnsmasq", daemon.argument_of(run)
    todo: dict[str, journal.Executor] = {**executors(), "nft": lambda step: None}  # as a whole, below
    if served.is_dir():
        todo["process"] = lambda step: None if step.get("argument") == argument else daemon.undo(step)
    followed = _followed(journal.read(folder / NAME))
    failed = await journal.replay(folder / NAME, todo)
    parts: tuple[tuple[str, Callable[[], list[str] | None]], ...] = (
        ("table gateway_base", lambda: _tables((folder / "base.nft").read_text())),
        ("network", lambda: _network(folder / "network.json", followed)),
        ("sysctls", lambda: _follow(settings["followers"])),
        ("dnsmasq", lambda: _serve(run, served) if served.is_dir() else None),
    )
    for what, work in parts:
        try:
            failed += work() or []
        except Exception as error:  # one part that fails must not keep the others from being undone
            failed.append(f"{what}: {error}")
    with contextlib.suppress(KernelError):
        conntrack.delete_userspace()
    for line in failed:
        log.error("not undone: %s", line)
    if not failed:
        _forget(run, folder)
    return failed


def _settings(folder: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads((folder / "settings.json").read_text())
    except (OSError, ValueError):
        return {}
    return value


def _tables(before: str) -> None:
    if not before:
        base.undo({**base.UNDO})
    elif base.shown(library := Library()) != before:
        base.restore(library, before)


def _network(path: Path, followed: list[int]) -> list[str]:
    at, before = stood.load(path)
    stood.take_away(before, followed)
    return stood.put_back(before, boottime() - at)


def _followed(steps: list[journal.Step]) -> list[int]:
    """Interfaces whose router advertisements were followed for the trial's sake."""
    found = []
    for step in steps:
        name = re.fullmatch(r"net/ipv6/conf/([^/]+)/accept_ra", str(step.get("name", "")))
        with contextlib.suppress(OSError):  # it is gone
            found += [socket.if_nametoindex(name[1])] if name else []
    return found


def _follow(values: dict[str, str]) -> None:
    for name, value in values.items():
        with contextlib.suppress(KernelError, OSError):  # its interface is gone
            if sysctl.read(name) != value:
                sysctl.path_of(name).write_text(value)


def _serve(run: Path, served: Path) -> None:
    """dnsmasq as it was: the same process where it still has the same configuration, else another one."""
    argument = daemon.argument_of(run)
    same = daemon.find(argument) == json.loads((served / "pids").read_text())
    if not same:
        daemon.undo({"argument": argument})
    for name in ("dnsmasq.conf", "resolv.conf"):
        if (served / name).exists():
            shutil.copy2(served / name, run / "dnsmasq" / name)
    if not same:
        daemon.spawn(daemon.installed(), argument)
        return
    for pid in daemon.find(argument):
        os.kill(pid, signal.SIGHUP)


def _forget(run: Path, folder: Path) -> None:
    """The journal is that of before; the trial is over."""
    if (folder / "before.jsonl").exists():
        draft = run / "undo.tmp"
        shutil.copy2(folder / "before.jsonl", draft)
        os.replace(draft, run / NAME)
    else:
        (run / NAME).unlink(missing_ok=True)
    over = run / f"{TRIAL}.over"
    os.rename(folder, over)
    shutil.rmtree(over, ignore_errors=True)


def main(run: Path, where: str) -> int:
    """1 where something could not be undone."""
    handler = logging.FileHandler(where) if where else logging.StreamHandler(sys.stderr)
    logging.basicConfig(
        handlers=[handler], level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    until = time.monotonic() + PATIENCE
    while True:
        try:
            claim = Claim(run)
            break
        except Claimed:  # somebody undoes it already, or has begun anew after that
            if time.monotonic() > until or not (run / TRIAL).is_dir():
                return 0
            time.sleep(0.1)
    failed: list[str] = []
    try:
        if (run / TRIAL).is_dir():
            log.error("the gateway is gone (killed, or it hung), and nobody had confirmed its trial: it is undone")
            failed = asyncio.run(rollback(run))
            if not failed:
                log.warning("all is as it was before the trial")
    finally:
        claim.release(forget=not failed and not (run / NAME).exists())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
