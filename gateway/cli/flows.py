"""``gateway flows``: the flows that run now, those that the kernel forwards and those that userspace relays."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.flows import KEYS
from gateway.service.control import ask

WIDTH = 120
HEAD = ("PLANE", "NET", "SOURCE", "DESTINATION", "OUTBOUND", "UP", "DOWN", "AGE", "RULE")
PROCESS = "PROCESS"
"""Where a flow of this host is listed."""
RIGHT = {"UP", "DOWN", "AGE", "RULE"}
OUTBOUND = 20
"""Characters of the column, and of the process's."""
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


def run(arguments: argparse.Namespace) -> int:
    folder, _ = instance.folders(arguments)
    answer = ask(folder, {"command": "flows", "sort": arguments.sort, "filter": arguments.filter})
    if not answer.pop("ok", False):
        raise GatewayError(answer.get("error", "refused"))
    flows: list[Flow] = answer["flows"]
    print(json.dumps(answer) if arguments.json else "\n".join(table(flows, numeric=arguments.numeric)))
    if answer["left_out"] and not arguments.json:
        print(f"gateway flows: {answer['left_out']} more are left out", file=sys.stderr)
    if any(flow["plane"] == "kernel" and flow["up"] is None for flow in flows):
        print(
            f"gateway flows: the kernel does not count bytes of all its flows; for new ones: sysctl -w {SYSCTL}=1",
            file=sys.stderr,
        )
    return 0


def table(flows: Sequence[Flow], width: int = WIDTH, *, numeric: bool = False) -> list[str]:
    """Aligned lines of at most ``width`` characters; what is cut keeps its end, where the port is."""
    rows = [HEAD, *(_cells(flow, numeric) for flow in flows)]
    if any(flow.get("user") for flow in flows):
        at = HEAD.index("OUTBOUND")
        owners = (PROCESS, *map(_owner, flows))
        rows = [(*row[:at], owner, *row[at:]) for row, owner in zip(rows, owners, strict=True)]
    head = rows[0]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    source, destination = head.index("SOURCE"), head.index("DESTINATION")
    room = width - 2 * (len(head) - 1) - sum(widths) + widths[source] + widths[destination]
    widths[source] = min(widths[source], max(room // 2, room - widths[destination]))
    widths[destination] = min(widths[destination], room - widths[source])
    return [
        "  ".join(
            cell.rjust(size) if name in RIGHT else _cut(cell, size).ljust(size)
            for name, cell, size in zip(head, row, widths, strict=True)
        )
        for row in rows
    ]


def _named(flow: Flow, end: str, name: str | None) -> str:
    """One end with its name in place of the address."""
    if not name:
        return str(flow[end])
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
