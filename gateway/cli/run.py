"""``gateway run``: the gateway itself, until SIGTERM or SIGINT; SIGHUP applies a changed configuration.

With ``--trial`` it undoes all it has made, and ends with 3, unless ``gateway confirm`` comes in time.
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
from gateway.cli import configuration, instance
from gateway.config.root import Config
from gateway.core.errors import ConfigError, GatewayError
from gateway.host import undo
from gateway.kernel import descriptors, journal
from gateway.service.claim import Claim
from gateway.service.control import Control, Handler
from gateway.trial import LEAST, MOST, SECONDS, UNCONFIRMED, Trial, finish
from gateway.uplink.clock import boottime

LEVELS = {"trace": 10, "debug": 10, "": 20, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}

log = logging.getLogger("gateway")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    instance.add_arguments(parser)
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
    config = configuration.configuration(arguments)
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
    claim, forget = Claim(folder, alone=config.gateway is not None), False
    trial: Trial | None = None
    stands = True
    try:
        if await finish(folder):
            raise GatewayError("what an earlier trial left cannot be undone: see the log, and gateway down")
        stands = bool(journal.read(folder / "undo.jsonl"))
        trial = None if arguments.trial is None else Trial(folder, arguments.trial, log_file(config))
        try:
            box = Box(config, folder, state)
            try:
                await _run(arguments, box, trial)
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
    if trial is None or trial.confirmed:
        return 0
    return UNCONFIRMED if not (folder / "trial").exists() else 1


async def _run(arguments: argparse.Namespace, box: Box, trial: Trial | None) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        one = on_trial()
        return box.status() | ({} if one is None else {"trial": round(one.left, 1)})

    async def explain(request: dict[str, Any]) -> dict[str, Any]:
        return box.explain(request)

    async def flows(request: dict[str, Any]) -> dict[str, Any]:
        return await box.flows(request)

    def on_trial() -> Trial | None:
        return None if trial is None or trial.confirmed else trial

    made = 0.0  # when the start was through

    async def confirm(request: dict[str, Any]) -> dict[str, Any]:
        if (one := on_trial()) is None:
            raise GatewayError("no trial is on: what stands stays")
        if not made:
            raise GatewayError("it still starts: confirm when it runs")
        one.confirm(request["peer"], bool(request.get("here")), max(made, box.changed))
        return {}

    async def pause(request: dict[str, Any]) -> dict[str, Any]:
        return box.pause(request)

    async def resume(request: dict[str, Any]) -> dict[str, Any]:
        return box.resume(request)

    changing = asyncio.Lock()  # what was read last is applied last
    waiting = False

    async def apply() -> None:
        nonlocal waiting
        if on_trial() is not None:
            waiting = False
            raise GatewayError("a trial is on: confirm it first (gateway confirm), or end it (gateway down)")
        async with changing:
            waiting = False
            config = await asyncio.to_thread(configuration.configuration, arguments)
            where = handler(config)
            await box.reload(config)
            logs(config, where)

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
        "status": status, "explain": explain, "flows": flows, "reload": reload, "confirm": confirm,
        "pause": pause, "resume": resume,
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
    if trial is not None:
        trial.watch(stop.set)
    try:
        await box.start()
        made = boottime()
        log.info("started; control socket %s", control.path)
        await stop.wait()
    finally:
        control.refusal = "the gateway stops"
        try:
            await box.stop()
        finally:
            await control.close()
