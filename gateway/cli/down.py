"""``gateway down``: undo everything that an instance made, from its journal."""

from __future__ import annotations

import argparse
import asyncio
import sys

from gateway.cli import instance
from gateway.host import down
from gateway.service.control import alive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    folder, _ = instance.folders(arguments)
    if alive(folder / "control.sock"):
        print("gateway down: it still runs; stop it first (SIGTERM)", file=sys.stderr)
        return 1
    failed = asyncio.run(down(folder))
    for line in failed:
        print(f"not undone: {line}", file=sys.stderr)
    return 1 if failed else 0
