"""``gateway down``: stop an instance, should it run, and undo everything that it made, from its journal."""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import signal
import sys
import time

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.host import down
from gateway.kernel import journal
from gateway.service.claim import Claimed
from gateway.service.control import listener
from gateway.trial import finish

PAUSE = 0.1
"""Seconds between two looks whether it can be undone."""
STOP, DIE = 20.0, 5.0
"""Seconds that a gateway may take to stop, and to be gone after SIGKILL."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """1 where something could not be undone."""
    folder, _ = instance.folders(arguments)
    try:
        place = journal.place(folder / "undo.jsonl")
    except PermissionError as error:
        raise GatewayError(f"{error}: run as root") from None
    if place == "elsewhere":
        print("gateway down: this instance is of another network namespace: say it there", file=sys.stderr)
        return 1
    late = time.monotonic() + STOP
    while True:
        process = listener(folder / "control.sock")
        if process >= 0 and not end(process):
            print(f"gateway down: it still runs, and process {process} does not end", file=sys.stderr)
            return 1
        try:
            failed = asyncio.run(down(folder, finish))
            break
        except Claimed:  # it begins just now, or somebody else undoes it
            if time.monotonic() > late:
                raise
            time.sleep(PAUSE)
    for line in failed:
        print(f"not undone: {line}", file=sys.stderr)
    return 1 if failed else 0


def end(process: int) -> bool:
    """Stop a process; one that hangs is killed. Whether it is gone."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    except OSError:  # 0: a process that we do not see
        return False
    try:
        for number, seconds in ((signal.SIGTERM, STOP), (signal.SIGKILL, DIE)):
            signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], seconds)[0]:
                return True
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)
    return False
