"""``gateway run``: the gateway itself, until SIGTERM or SIGINT; SIGHUP applies a changed configuration.

Exit status ``REFUSED`` where the configuration is wrong: starting again mends nothing.
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
from gateway.service.control import Control
from gateway.service.notify import Notifier

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
    stands = bool(journal.read(folder / "undo.jsonl"))
    try:
        try:
            box = Box(config, folder, state, notifier.patience)
            try:
                await _run(arguments, box, notifier)
            finally:
                stands = stands or box.state == "running"
        finally:
            if not stands and (folder / "undo.jsonl").exists():
                forget = not await undo(folder)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise GatewayError(f"{where}{error.strerror or error}") from error
    finally:
        claim.release(forget=forget)
        notifier.close()
    return 0


async def _run(arguments: argparse.Namespace, box: Box, notifier: Notifier) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return box.status()

    async def explain(request: dict[str, Any]) -> dict[str, Any]:
        return box.explain(request)

    async def flows(request: dict[str, Any]) -> dict[str, Any]:
        return await box.flows(request)

    async def devices(_: dict[str, Any]) -> dict[str, Any]:
        return box.devices()

    async def groups(_: dict[str, Any]) -> dict[str, Any]:
        return box.groups()

    async def select(request: dict[str, Any]) -> dict[str, Any]:
        return box.select(request)

    async def urltest(request: dict[str, Any]) -> dict[str, Any]:
        return await box.urltest(request)

    changing = asyncio.Lock()  # what was read last is applied last
    waiting, kept = False, ""

    def line() -> str:
        return f"{box.line()}; configuration kept: {kept}" if kept else box.line()

    async def apply() -> None:
        nonlocal waiting, kept
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

    handlers = {
        "status": status, "explain": explain, "flows": flows, "devices": devices, "groups": groups, "select": select,
        "urltest": urltest, "reload": reload,
    }  # fmt: skip
    control = Control(box.run, handlers)
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
    try:
        await box.start()
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
