"""``gateway check``: the form of a configuration, nothing of the host."""

from __future__ import annotations

import argparse
import sys

from gateway.cli.configuration import add_arguments, configuration

__all__ = ["add_arguments", "run"]


def run(arguments: argparse.Namespace) -> int:
    for note in configuration(arguments).notes:
        print(note, file=sys.stderr)
    return 0
