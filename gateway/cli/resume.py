"""``gateway resume``: end a pause. What began in it goes on directly until it ends."""

from __future__ import annotations

import argparse

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.service.control import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    told = "as it was paused, or the name of its lease; else all that is paused"
    parser.add_argument("--device", default="", metavar="DEVICE", help=told)


def run(arguments: argparse.Namespace) -> int:
    folder, _ = instance.folders(arguments)
    answer = ask(folder, {"command": "resume", "device": arguments.device})
    if not answer.get("ok"):
        raise GatewayError(answer.get("error", "refused"))
    print("new flows go by the rules again; what began in the pause goes on directly")
    return 0
