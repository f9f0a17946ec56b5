"""``gateway flows``: the flows that run now, those that the kernel forwards and those that userspace relays. Or what
has passed since the start, by class, device, process or outbound.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

from gateway.cli import instance
from gateway.core.account import By
from gateway.flows import KEYS

WIDTH = 120
HEAD = ("PLANE", "NET", "SOURCE", "DESTINATION", "OUTBOUND", "UP", "DOWN", "AGE", "RULE")
TOTALS = ("FLOWS", "UP", "DOWN", "BYTES", "PACKETS")
RATE = "RATE"
"""Both directions, where there were two looks."""
PROCESS = "PROCESS"
"""Where a flow of this host is listed."""
RIGHT = {*TOTALS, RATE, "AGE", "RULE"}
OUTBOUND = 20
"""Characters of the column, and of the process's."""
NAME = 64
"""The same of what is added up."""
PATIENCE = 30.0
"""Seconds that the answer may take beside the interval."""
SYSCTL = "net.netfilter.nf_conntrack_acct"

Flow = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--sort", choices=list(KEYS), default="bytes", help="(bytes)")
    parser.add_argument("-n", "--numeric", action="store_true", help="addresses in place of the names of LAN devices")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="WORD", help="flows with this word in a field; several: all"
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS",
        help="between two looks, for the rates; 0: at once, without (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--by", choices=get_args(By), help="what has passed since the start, added up, and no flows")


def run(arguments: argparse.Namespace) -> int:
    request = {"command": "flows", "sort": arguments.sort, "filter": arguments.filter, "interval": arguments.interval}
    if arguments.by:
        request["by"] = arguments.by
    answer = instance.ask(arguments, request, PATIENCE + max(arguments.interval, 0.0))
    if arguments.by:
        print(json.dumps(answer) if arguments.json else "\n".join(totals(answer["totals"], arguments.by)))
        return 0
    flows: list[Flow] = answer["flows"]
    print(json.dumps(answer) if arguments.json else "\n".join(table(flows, numeric=arguments.numeric)))
    if answer["left_out"] and not arguments.json:
        print(f"gateway flows: {answer['left_out']} more are left out", file=sys.stderr)
    if any(flow["plane"] == "kernel" and flow["up"] is None for flow in flows):
        print(
            "gateway flows: the kernel does not count bytes of all its flows; "
            f"for new ones: gateway.kernel.accounting, or sysctl -w {SYSCTL}=1",
            file=sys.stderr,
        )
    return 0


def totals(found: Sequence[dict[str, Any]], by: str) -> list[str]:
    """Aligned lines, the first their head."""
    rows: list[tuple[str, ...]] = [(by.upper(), *TOTALS)]
    for one in found:
        sizes = (size(one[key]) for key in ("up", "down", "bytes"))
        rows.append((_cut(_printable(one["name"]), NAME), str(one["flows"]), *sizes, str(one["packets"] or "-")))
    return _lines(rows, [max(map(len, column)) for column in zip(*rows, strict=True)])


def table(flows: Sequence[Flow], width: int = WIDTH, *, numeric: bool = False) -> list[str]:
    """Aligned lines of at most ``width`` characters; what is cut keeps its end, where the port is."""
    rows = [HEAD, *(_cells(flow, numeric) for flow in flows)]
    if any(flow.get("user") for flow in flows):
        at = HEAD.index("OUTBOUND")
        owners = (PROCESS, *map(_owner, flows))
        rows = [(*row[:at], owner, *row[at:]) for row, owner in zip(rows, owners, strict=True)]
    if any(flow.get("rate_up") is not None for flow in flows):
        at = rows[0].index("AGE")
        rates = (RATE, *map(_rate, flows))
        rows = [(*row[:at], rate, *row[at:]) for row, rate in zip(rows, rates, strict=True)]
    head = rows[0]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    source, destination = head.index("SOURCE"), head.index("DESTINATION")
    room = width - 2 * (len(head) - 1) - sum(widths) + widths[source] + widths[destination]
    widths[source] = min(widths[source], max(room // 2, room - widths[destination]))
    widths[destination] = min(widths[destination], room - widths[source])
    return _lines(rows, widths)


def _lines(rows: Sequence[Sequence[str]], widths: Sequence[int]) -> list[str]:
    return [
        "  ".join(
            cell.rjust(size) if name in RIGHT else _cut(cell, size).ljust(size)
            for name, cell, size in zip(rows[0], row, widths, strict=True)
        )
        for row in rows
    ]


def _named(flow: Flow, end: str, name: str | None) -> str:
    """One end with its name in place of the address. Either may be a stranger's word."""
    if not name:
        return _printable(str(flow[end]))
    port = f":{flow[end].rpartition(':')[2]}" if flow["network"] in ("tcp", "udp") else ""
    return _printable(name) + port


def _cells(flow: Flow, numeric: bool) -> tuple[str, ...]:
    destination = _named(flow, "destination", flow["name"])
    source = _named(flow, "source", None if numeric else flow.get("hostname"))
    if flow["destinations"] > 1:
        destination += f" +{flow['destinations'] - 1}"
    chain = ">".join(flow["chain"]) or "-"
    rule = {None: "-", -1: "final"}.get(flow["rule"], str(flow["rule"]))
    return (
        flow["plane"], flow["network"], source, destination, _cut(chain, OUTBOUND), size(flow["up"]),
        size(flow["down"]), age(flow["age"]), rule,
    )  # fmt: skip


def _rate(flow: Flow) -> str:
    if flow["rate_up"] is None:
        return "-"
    return f"{size(round(flow['rate_up'] + flow['rate_down']))}/s"


def _owner(flow: Flow) -> str:
    """Name, number and user of the process."""
    if not flow.get("user"):
        return "-"
    pid = f"[{flow['pid']}]" if flow["pid"] else ""
    name = _printable((flow["process"] or "?").rpartition("/")[2])
    user = _printable(flow["user"])
    return f"{_cut(name, max(OUTBOUND - len(pid) - len(user) - 1, 5))}{pid} {user[:OUTBOUND]}"


def _printable(text: str) -> str:
    """It is a stranger's word, and goes to a terminal."""
    return "".join(one if one.isprintable() else "?" for one in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def size(count: int | None) -> str:
    """Bytes for a person, in powers of 1000."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count} B"
    number = float(count)
    for unit in ("KB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            break
    return f"{number:.1f} {unit}" if number < 99.95 else f"{number:.0f} {unit}"


def age(seconds: float | None) -> str:
    """Two units at most: 42s, 3m05s, 2h10m, 3d04h."""
    if seconds is None:
        return "-"
    whole = int(seconds)
    for unit, length, lower, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= length:
            return f"{whole // length}{unit}{whole % length // part:02}{lower}"
    return f"{whole}s"
