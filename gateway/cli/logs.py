"""The log, as the ``log`` object of a configuration wants it."""

from __future__ import annotations

import logging
import sys

from gateway.config.root import Config
from gateway.core.errors import ConfigError

LEVELS = {"trace": 10, "debug": 10, "": 20, "info": 20, "warn": 30, "error": 40, "fatal": 50, "panic": 50}


def handler(config: Config) -> logging.Handler:
    """Where the ``log`` object wants the log. Raises ConfigError."""
    output = config.log.output
    try:
        if output in ("", "stderr"):
            return logging.StreamHandler(sys.stderr)
        return logging.FileHandler(config.directory / output)
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", "log.output") from error


def file(config: Config) -> str:
    """Where another process may write to the log too; "" is standard error."""
    output = config.log.output
    return "" if output in ("", "stderr") else str(config.directory / output)


def use(config: Config, where: logging.Handler) -> None:
    """Logging as the ``log`` object asks."""
    options = config.log
    form = (
        "%(asctime)s %(levelname)s %(name)s: %(message)s"
        if options.timestamp
        else "%(levelname)s %(name)s: %(message)s"
    )
    logging.basicConfig(handlers=[where], level=LEVELS[options.level], format=form, force=True)
    logging.disable(logging.CRITICAL if options.disabled else logging.NOTSET)
