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
from typing import Any

from gateway.box import Box
from gateway.cli import configuration, footprint, instance
from gateway.config.root import Config
from gateway.core.errors import ConfigError, GatewayError
from gateway.host import undo
from gateway.kernel import descriptors, journal
from gateway.service.claim import Claim
from gateway.service.control import Control, Handler
from gateway.service.notify import Notifier
from gateway.trial import LEAST, MOST, SECONDS, UNCONFIRMED, Trial, finish
from gateway.uplink.clock import boottime

REFUSED = 78
"""EX_CONFIG of sysexits.h."""
LEVELS = {"trace": 10, "debug": 10, "": 20, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}

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
    logs(config, handler(config))
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


def handler(config: Config) -> logging.Handler:
    """Where the ``log`` object wants the log. Raises ConfigError."""
    output = config.log.output
    try:
        if output in ("", "stderr"):
            return logging.StreamHandler(sys.stderr)
        return logging.FileHandler(config.directory / output)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", "log.output") from error


def log_file(config: Config) -> str:
    """Where another process may write to the log too; "" is standard error."""
    output = config.log.output
    return "" if output in ("", "stderr") else str(config.directory / output)


def logs(config: Config, where: logging.Handler) -> None:
    """Logging as the ``log`` object asks."""
    options = config.log
    form = (
        "%(asctime)s %(levelname)s %(name)s: %(message)s"
        if options.timestamp
        else "%(levelname)s %(name)s: %(message)s"
    )
    logging.basicConfig(handlers=[where], level=LEVELS[options.level], format=form, force=True)
    logging.disable(logging.CRITICAL if options.disabled else logging.NOTSET)


async def _serve(arguments: argparse.Namespace, config: Config) -> int:
    """A start that fails leaves what it found: nothing, or the plain router of a former run."""
    for note in config.notes:
        log.warning(note)
    folder, state = instance.folders(arguments)
    notifier = Notifier()
    claim, forget = Claim(folder, alone=config.gateway is not None), False
    trial: Trial | None = None
    stands = True
    try:
        if await finish(folder):
            raise GatewayError("what an earlier trial left cannot be undone: see the log, and gateway down")
        stands = bool(journal.read(folder / "undo.jsonl"))
        trial = None if arguments.trial is None else Trial(folder, arguments.trial, log_file(config))
        try:
            box = Box(config, folder, state, notifier.patience)
            try:
                await _run(arguments, box, notifier, trial)
            finally:
                stands = stands or box.state == "running"
        finally:
            if trial is not None and not trial.confirmed:
                forget = not await trial.undo() and not (folder / "undo.jsonl").exists()
            elif not stands and (folder / "undo.jsonl").exists():
                forget = not await undo(folder)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise GatewayError(f"{where}{error.strerror or error}") from error
    finally:
        claim.release(forget=forget)
        notifier.close()
    if trial is None or trial.confirmed:
        return 0
    return UNCONFIRMED if not (folder / "trial").exists() else 1


async def _run(arguments: argparse.Namespace, box: Box, notifier: Notifier, trial: Trial | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def on_trial() -> Trial | None:
        return None if trial is None or trial.confirmed else trial

    def status(_: dict[str, Any]) -> dict[str, Any]:
        one = on_trial()
        return box.status() | ({} if one is None else {"trial": round(one.left, 1)})

    made = 0.0  # when the start was through

    def confirm(request: dict[str, Any]) -> dict[str, Any]:
        if (one := on_trial()) is None:
            raise GatewayError("no trial is on: what stands stays")
        if not made:
            raise GatewayError("it still starts: confirm when it runs")
        one.confirm(request["peer"], bool(request.get("here")), max(made, box.changed))
        return {}

    changing = asyncio.Lock()  # what was read last is applied last
    waiting, kept = False, ""

    def line() -> str:
        return f"{box.line()}; configuration kept: {kept}" if kept else box.line()

    async def apply() -> None:
        nonlocal waiting, kept
        if on_trial() is not None:
            waiting = False
            raise GatewayError("a trial is on: confirm it first (gateway confirm), or end it (gateway down)")
        async with changing:
            waiting = False
            notifier.reloading()
            try:
                config = await asyncio.to_thread(configuration.configuration, arguments)
                where = handler(config)
                await box.reload(config)
                logs(config, where)
                kept = ""
                notifier.agree(box.heartbeat)
            except Exception as error:
                kept = str(error)
                raise
            finally:
                notifier.ready()

    async def reload(_: dict[str, Any]) -> dict[str, Any]:
        await apply()
        return {}

    async def hangup() -> None:
        try:
            await apply()
            log.info("configuration applied")
        except GatewayError as error:
            log.error("configuration kept: %s", error)
        except Exception:
            log.exception("configuration kept")

    commands: dict[str, Handler] = {
        "status": status, "explain": box.explain, "flows": box.flows, "devices": lambda _: box.devices(),
        "groups": lambda _: box.groups(), "select": box.select, "urltest": box.urltest, "pause": box.pause,
        "resume": box.resume, "confirm": confirm, "reload": reload,
    }  # fmt: skip
    control = Control(box.run, commands)
    await control.start()
    tasks: set[asyncio.Task[None]] = set()

    def on_hangup() -> None:
        nonlocal waiting
        if waiting:  # that one has not read the files yet
            return
        waiting = True
        task = asyncio.create_task(hangup())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    notifier.start(line, box.heartbeat)
    if trial is not None:
        trial.watch(stop.set)
    try:
        await box.start()
        made = boottime()
        notifier.ready()
        log.info("started; control socket %s", control.path)
        if arguments.minimal:
            print(*footprint.lines(), sep="\n", flush=True)
        await stop.wait()
    finally:
        notifier.stopping()
        control.refusal = "the gateway stops"
        try:
            await box.stop()
        finally:
            await control.close()
