"""The arguments that name an instance: where its run files and its state are."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from gateway.box import RUN, STATE
from gateway.core.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instance", default="main", metavar="NAME", help="several gateways on one host (main)")


def folders(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """Run folder and state folder. Raises ConfigError on a name that is no file name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", arguments.instance):
        raise ConfigError(f'"{arguments.instance}" is not a name: letters, digits, "_", "." and "-"')
    return RUN / arguments.instance, STATE / arguments.instance
