"""``gateway resume``: end a pause. What began in it goes on directly until it ends."""

from __future__ import annotations

import argparse

from gateway.cli import instance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    told = "as it was paused, or the name of its lease; else all that is paused"
    parser.add_argument("--device", default="", metavar="DEVICE", help=told)


def run(arguments: argparse.Namespace) -> int:
    instance.ask(arguments, {"command": "resume", "device": arguments.device})
    print("new flows go by the rules again; what began in the pause goes on directly")
    return 0
