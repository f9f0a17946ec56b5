"""``gateway run``: the gateway itself, until SIGTERM or SIGINT; SIGHUP applies a changed configuration."""

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
from gateway.core.errors import GatewayError
from gateway.kernel import descriptors
from gateway.service.control import Control

LEVELS = {"trace": 10, "debug": 10, "": 20, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}

log = logging.getLogger("gateway")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    configuration.add_arguments(parser)
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    config = configuration.configuration(arguments)
    logs(config)
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


def logs(config: Config) -> None:
    """Logging as the ``log`` object asks."""
    options = config.log
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if options.output not in ("", "stderr"):
        handler = logging.FileHandler(config.directory / options.output)
    form = (
        "%(asctime)s %(levelname)s %(name)s: %(message)s"
        if options.timestamp
        else "%(levelname)s %(name)s: %(message)s"
    )
    logging.basicConfig(handlers=[handler], level=LEVELS[options.level], format=form, force=True)
    logging.disable(logging.CRITICAL if options.disabled else logging.NOTSET)


async def _serve(arguments: argparse.Namespace, config: Config) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for note in config.notes:
        log.warning(note)
    box = Box(config, *instance.folders(arguments))

    async def status(_: dict[str, Any]) -> dict[str, Any]:
        return box.status()

    async def explain(request: dict[str, Any]) -> dict[str, Any]:
        return box.explain(request)

    async def flows(request: dict[str, Any]) -> dict[str, Any]:
        return await box.flows(request)

    changing = asyncio.Lock()  # what was read last is applied last
    waiting = False

    async def apply() -> None:
        nonlocal waiting
        async with changing:
            waiting = False
            config = await asyncio.to_thread(configuration.configuration, arguments)
            await box.reload(config)
            logs(config)

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

    control = Control(box.run, {"status": status, "explain": explain, "flows": flows, "reload": reload})
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
    try:
        await box.start()
        log.info("started; control socket %s", control.path)
        await stop.wait()
    finally:
        await control.close()
        await box.stop()
    return 0
