"""``gateway devices``: the devices of the LANs, by the leases of our dnsmasq and of DHCP servers beside us."""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime
from typing import Any

from gateway.cli import instance

HEAD = ("ADDRESS", "MAC", "NAME", "SINCE", "UNTIL")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document; times in seconds since 1970")


def run(arguments: argparse.Namespace) -> int:
    answer = instance.ask(arguments, {"command": "devices"})
    print(json.dumps(answer) if arguments.json else table(answer["devices"]))
    return 0


def table(devices: list[dict[str, Any]]) -> str:
    if not devices:
        return "no device has a lease"
    rows = [HEAD, *(_row(one) for one in devices)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    return one["address"], one["mac"], one["name"] or "-", _moment(one["since"]), _moment(one["until"])


def _moment(seconds: int) -> str:
    """In this host's time; the date where it is not today's."""
    if not seconds:
        return "-"
    told, today = datetime.fromtimestamp(seconds), datetime.fromtimestamp(time.time())
    return told.strftime("%H:%M:%S" if told.date() == today.date() else "%Y-%m-%d %H:%M")
