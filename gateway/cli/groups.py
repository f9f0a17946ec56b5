"""``gateway groups``: the groups of outbounds, and the member that each uses."""

from __future__ import annotations

import argparse
import json
from typing import Any

from gateway.cli import instance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    answer = instance.ask(arguments, {"command": "groups"})
    print(json.dumps(answer) if arguments.json else "\n".join(map(line, answer["groups"])) or "no groups")
    return 0


def line(group: dict[str, Any]) -> str:
    """One group, its member in use marked."""
    members = ", ".join(member(one, group["now"]) for one in group["members"])
    udp = f"; UDP through {group['udp']}" if group["udp"] not in ("", group["now"]) else ""
    return f"{group['type']} {group['tag']}: {members}{udp}"


def member(one: dict[str, Any], now: str) -> str:
    delay = "" if one["delay"] is None else f" {one['delay']} ms"
    return f"{'*' if one['tag'] == now else ''}{one['tag']}{delay}"
