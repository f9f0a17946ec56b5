"""``gateway urltest``: let a group probe its members now, whenever it did so last, and choose."""

from __future__ import annotations

import argparse
import json

from gateway.cli import instance
from gateway.cli.groups import line

PATIENCE = 60.0
"""Seconds that the probes of a large group may take."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", metavar="GROUP", help="tag of a urltest")
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    answer = instance.ask(arguments, {"command": "urltest", "group": arguments.group}, PATIENCE)
    print(json.dumps(answer) if arguments.json else line(answer["group"]))
    return 0
