"""``gateway select``: let a selector use another member, at once and, with a ``cache_file``, at the next start too."""

from __future__ import annotations

import argparse

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.service.control import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", metavar="GROUP", help="tag of a selector")
    parser.add_argument("member", metavar="MEMBER", help="tag of one of its outbounds")
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    folder, _ = instance.folders(arguments)
    answer = ask(folder, {"command": "select", "group": arguments.group, "member": arguments.member})
    if not answer.pop("ok", False):
        raise GatewayError(answer.get("error", "refused"))
    return 0
