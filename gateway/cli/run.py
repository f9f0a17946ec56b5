"""``gateway run``: the gateway itself, until SIGTERM or SIGINT; SIGHUP applies a changed configuration.

Exit status ``REFUSED`` where the configuration is wrong: starting again mends nothing. With ``--trial`` it
undoes all it has made, and ends with 3, unless ``gateway confirm`` comes in time.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.box import Box
from gateway.cli import configuration, footprint, instance, logs
from gateway.config.root import Config
from gateway.core.errors import ConfigError, GatewayError
from gateway.host import undo
from gateway.kernel import descriptors, journal
from gateway.kernel.clock import boottime
from gateway.service.claim import Claim
from gateway.service.control import Control, Handler
from gateway.service.notify import Notifier
from gateway.trial import LEAST, MOST, SECONDS, UNCONFIRMED, Trial, finish

REFUSED = 78
"""EX_CONFIG of sysexits.h."""

log = logging.getLogger("gateway")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    instance.add_arguments(parser)
    parser.add_argument(
        "--minimal",
        action="store_true",
        help="no BPF and no optional library; says what that takes on disk and in memory",
    )
    parser.add_argument(
        "--trial", nargs="?", type=seconds, const=SECONDS, metavar="SECONDS",
        help=f"undo everything, unless gateway confirm comes within so many seconds ({SECONDS}); exit status 3 then",
    )  # fmt: skip


def seconds(text: str) -> int:
    """Of a trial. Raises argparse.ArgumentTypeError."""
    if not text.isdecimal() or not LEAST <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"whole seconds, {LEAST} to {MOST}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    try:
        config = configuration.configuration(arguments)
    except ConfigError as error:
        print(f"gateway run: {error}", file=sys.stderr)
        return REFUSED
    logs.use(config, logs.handler(config))
    descriptors.raise_limit()
    descriptors.keep()
    faulthandler.enable(2)  # SIGABRT of a loop that stands still: where
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(_serve(arguments, config))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed; None is asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _serve(arguments: argparse.Namespace, config: Config) -> int:
    """A start that fails leaves what it found: nothing, or the plain router of a former run."""
    for note in config.notes:
        log.warning(note)
    folder, state = instance.folders(arguments)
    notifier = Notifier()
    claim, forget = Claim(folder, alone=config.gateway is not None), False
    trial: Trial | None = None
    try:
        if await finish(folder):
            raise GatewayError("what an earlier trial left cannot be undone: see the log, and gateway down")
        stands = bool(journal.read(folder / journal.NAME))
        trial = None if arguments.trial is None else Trial(folder, arguments.trial, logs.file(config))
        box: Box | None = None
        try:
            box = Box(config, folder, state, notifier.patience)
            await Running(arguments, box, notifier, trial).run()
        finally:
            stands = stands or (box is not None and box.state == "running")
            forget = await _undone(folder, trial, stands)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise GatewayError(f"{where}{error.strerror or error}") from error
    finally:
        claim.release(forget=forget)
        notifier.close()
    if trial is None or trial.confirmed:
        return 0
    return UNCONFIRMED if not (folder / journal.TRIAL).exists() else 1


async def _undone(folder: Path, trial: Trial | None, stands: bool) -> bool:
    """Undo a trial that was not confirmed, or a start that failed. Whether all is undone."""
    made = folder / journal.NAME
    if trial is not None and not trial.confirmed:
        return not await trial.undo() and not made.exists()
    return not stands and made.exists() and not await undo(folder)


class Running:
    """A gateway from its start to its end: what signals, the control socket, the service manager and a trial want of
    it. To be made in a running loop."""

    def __init__(self, arguments: argparse.Namespace, box: Box, notifier: Notifier, trial: Trial | None) -> None:
        self._arguments = arguments
        self._box = box
        self._notifier = notifier
        self._trial = trial
        self._stop = asyncio.Event()
        self._made = 0.0
        """When the start was through, in seconds of CLOCK_BOOTTIME."""
        self._changing = asyncio.Lock()
        self._waiting = False
        """There was a SIGHUP, and the files are not read yet."""
        self._kept = ""
        """Why the configuration that was read last is not in force."""
        self._tasks: set[asyncio.Task[None]] = set()
        commands: dict[str, Handler] = {
            "status": self._status, "explain": box.explain, "flows": box.flows, "devices": lambda _: box.devices(),
            "groups": lambda _: box.groups(), "select": box.select, "urltest": box.urltest, "pause": box.pause,
            "resume": box.resume, "confirm": self._confirm, "reload": self._reload,
        }  # fmt: skip
        self._control = Control(box.run, commands)

    async def run(self) -> None:
        """Until a signal, or the end of a trial."""
        await self._control.start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._notifier.start(self._line, self._box.heartbeat)
        if self._trial is not None:
            self._trial.watch(self._stop.set)
        try:
            await self._box.start()
            self._made = boottime()
            self._notifier.ready()
            log.info("started; control socket %s", self._control.path)
            if self._arguments.minimal:
                print(*footprint.lines(), sep="\n", flush=True)
            await self._stop.wait()
        finally:
            self._notifier.stopping()
            self._control.refusal = "the gateway stops"
            try:
                await self._box.stop()
            finally:
                await self._control.close()

    def _on_trial(self) -> Trial | None:
        return None if self._trial is None or self._trial.confirmed else self._trial

    def _line(self) -> str:
        """For the service manager."""
        return f"{self._box.line()}; configuration kept: {self._kept}" if self._kept else self._box.line()

    def _status(self, _: dict[str, Any]) -> dict[str, Any]:
        trial = self._on_trial()
        return self._box.status() | ({} if trial is None else {"trial": round(trial.left, 1)})

    def _confirm(self, request: dict[str, Any]) -> dict[str, Any]:
        trial = self._on_trial()
        if trial is None:
            raise GatewayError("no trial is on: what stands stays")
        if not self._made:
            raise GatewayError("it still starts: confirm when it runs")
        trial.confirm(request["peer"], bool(request.get("here")), max(self._made, self._box.changed))
        return {}

    async def _reload(self, _: dict[str, Any]) -> dict[str, Any]:
        await self._apply()
        return {}

    def _on_hangup(self) -> None:
        if self._waiting:
            return
        self._waiting = True
        task = asyncio.create_task(self._hangup())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hangup(self) -> None:
        try:
            await self._apply()
            log.info("configuration applied")
        except GatewayError as error:
            log.error("configuration kept: %s", error)
        except Exception:
            log.exception("configuration kept")

    async def _apply(self) -> None:
        """Read the configuration again, one after another: what was read last is applied last. Raises GatewayError,
        and what a fault of ours raises: what ran before goes on."""
        if self._on_trial() is not None:
            self._waiting = False
            raise GatewayError("a trial is on: confirm it first (gateway confirm), or end it (gateway down)")
        async with self._changing:
            self._waiting = False
            self._notifier.reloading()
            try:
                config = await asyncio.to_thread(configuration.configuration, self._arguments)
                where = logs.handler(config)
                await self._box.reload(config)
                logs.use(config, where)
                self._kept = ""
                self._notifier.agree(self._box.heartbeat)
            except Exception as error:
                self._kept = str(error)
                raise
            finally:
                self._notifier.ready()
