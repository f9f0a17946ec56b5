"""``gateway version``."""

from __future__ import annotations

import argparse
import platform

from gateway import __version__
from gateway.config.anchor import VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--name", action="store_true", help="print the bare version number")


def run(arguments: argparse.Namespace) -> int:
    if arguments.name:
        print(__version__)
    else:
        print(f"gateway version {__version__}\n\nConfiguration: sing-box {VERSION}")
        print(f"Environment: Python {platform.python_version()} {platform.system()}/{platform.machine()}")
    return 0
