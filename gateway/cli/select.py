"""``gateway select``: let a selector use another member, at once and, with a ``cache_file``, at the next start too."""

from __future__ import annotations

import argparse

from gateway.cli import instance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("group", metavar="GROUP", help="tag of a selector")
    parser.add_argument("member", metavar="MEMBER", help="tag of one of its outbounds")
    instance.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    instance.ask(arguments, {"command": "select", "group": arguments.group, "member": arguments.member})
    return 0
