"""``gateway reload``: apply the changed configuration files of a gateway that runs, and say what became of it.

As SIGHUP, but that whoever asks hears the answer: so it is what a service manager is told to call.
"""

from __future__ import annotations

import argparse

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.service.control import ask

LONGEST = 150.0
"""Seconds; rules may be compiled for two minutes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """1 where the configuration is refused: what ran before goes on."""
    folder, _ = instance.folders(arguments)
    answer = ask(folder, {"command": "reload"}, LONGEST)
    if not answer.get("ok"):
        raise GatewayError(f"configuration kept: {answer.get('error')}")
    return 0
