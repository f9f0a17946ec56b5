"""The arguments that name an instance: where its run files and its state are, and what its gateway answers."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from gateway.box import RUN, STATE
from gateway.core.errors import ConfigError, GatewayError
from gateway.service import control


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", default="main", metavar="NAME", help="several gateways on one host (main)")


def folders(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Run folder and state folder. Raises ConfigError on a name that is no file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", arguments.instance):
        raise ConfigError(f'"{arguments.instance}" is not a name: letters, digits, "_", "." and "-"')
    return RUN / arguments.instance, STATE / arguments.instance


def ask(arguments: argparse.Namespace, request: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
    """What the instance's gateway answers within ``timeout`` seconds, without ``ok``. Raises GatewayError where it
    refuses, or none runs; ConfigError as ``folders``."""
    answer = control.ask(folders(arguments)[0], request, timeout)
    if not answer.pop("ok", False):
        raise GatewayError(answer.get("error", "refused"))
    return answer
