"""``gateway parity``: what is built of sing-box and of the router around it, row by row, from ``parity.json``.

A row is ``absent``, ``partial`` (its note says what is missing), ``works`` (pytest ids prove it) or ``not-here`` (its
note says why). docs/parity.md is what ``--markdown`` prints; ``--verify`` holds the proofs against a tests' report.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gateway.core.errors import GatewayError

STATUSES = ("works", "partial", "absent", "not-here")
PEER_AREAS = frozenset({"inbound", "outbound", "transport", "tls", "dns-server"})
"""Areas where one proof at least talks to a program that is not ours."""
SOURCE = Path(__file__).with_suffix(".json")


class Row(NamedTuple):
    """``proof``: pytest ids, a parametrised test by its function."""

    area: str
    name: str
    status: str
    note: str = ""
    proof: tuple[str, ...] = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="one JSON document")
    kind.add_argument("--markdown", action="store_true", help="docs/parity.md")
    kind.add_argument("--verify", metavar="REPORT", help="name the rows whose proofs did not pass in a test report")


def run(arguments: argparse.Namespace) -> int:
    table = rows()
    if arguments.verify:
        problems = list(unproven(table, _report(Path(arguments.verify))))
        print("\n".join(problems) if problems else f"{count(table)['works']} rows work, each proof passed")
        return 1 if problems else 0
    if arguments.json:
        print(json.dumps({"rows": [row._asdict() for row in table]}, indent=1))
    elif arguments.markdown:
        print(markdown(table), end="")
    else:
        print("\n".join(_line(row) for row in table))
        print(_summary(table))
    return 0


def rows() -> tuple[Row, ...]:
    """The table, in the order of the file. A row that is text alone has that status and nothing more to say."""
    source: dict[str, dict[str, Any]] = json.loads(SOURCE.read_text(encoding="utf-8"))
    return tuple(_row(area, name, value) for area, names in source.items() for name, value in names.items())


def _row(area: str, name: str, value: Any) -> Row:
    if isinstance(value, str):
        return Row(area, name, value)
    return Row(area, name, value["status"], value.get("note", ""), tuple(value.get("proof", ())))


def count(table: tuple[Row, ...]) -> Counter[str]:
    return Counter(row.status for row in table)


def unproven(table: tuple[Row, ...], tests: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """One line for each row that claims to work and was not proven in this run. ``tests``: test id to ``outcome`` and
    ``peers``. A proof holds if it ran and every one of its parameters passed."""
    for row in table:
        if row.status != "works":
            continue
        peers: set[str] = set()
        for proof in row.proof:
            ran = [test for name, test in tests.items() if name == proof or name.startswith(proof + "[")]
            outcomes = sorted({str(test["outcome"]) for test in ran}) or ["not run"]
            if outcomes != ["passed"]:
                yield f"{row.area} {row.name}: {proof}: {', '.join(outcomes)}"
            peers.update(*(test["peers"] for test in ran))
        if not row.proof:
            yield f"{row.area} {row.name}: no proof"
        elif row.area in PEER_AREAS and not peers:
            yield f"{row.area} {row.name}: no proof with a foreign program"


def markdown(table: tuple[Row, ...]) -> str:
    """The whole of docs/parity.md."""
    parts = [
        "# Parity",
        "",
        "Made by `gateway parity --markdown` from `gateway/cli/parity.json`; do not edit. `works` is proven by the",
        "tests it names; `gateway parity --verify REPORT` holds them against the last run.",
        "",
        _summary(table) + ".",
    ]
    area = ""
    for row in table:
        if row.area != area:
            area = row.area
            parts += ["", f"## {area}", "", "| row | status | missing, reason or proof |", "| --- | --- | --- |"]
        said = "<br>".join(([row.note] if row.note else []) + [f"`{proof}`" for proof in row.proof])
        parts.append(f"| {row.name} | {row.status} | {said} |")
    return "\n".join(parts) + "\n"


def _line(row: Row) -> str:
    said = row.note or ("" if not row.proof else f"{len(row.proof)} proofs" if row.proof[1:] else "1 proof")
    return f"{row.area:<13}{row.name:<30} {row.status:<9}{said}".rstrip()


def _summary(table: tuple[Row, ...]) -> str:
    found = count(table)
    return f"{len(table)} rows: " + ", ".join(f"{found[status]} {status}" for status in STATUSES)


def _report(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tests: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["tests"]
    except OSError as error:
        raise GatewayError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise GatewayError(f"{path}: not a report of the tests") from None
    return tests
