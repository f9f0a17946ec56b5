"""What the benchmarks share: alternating runs, medians, ratios, the CPU time of a process."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, from /proc (proc(5)), its finished children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def alternate(rounds: int, ours: Callable[[], dict[str, float]], peer: Callable[[], dict[str, float]]) -> Any:
    """``rounds`` times ours then peer, the order turned each round; lists by measured thing."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for number in range(rounds):
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            for name, value in (ours, peer)[side]().items():
                found.setdefault(name, ([], []))[side].append(value)
    return found


def row(
    case: str, ours: Sequence[float], peer: Sequence[float], *, peer_name: str, unit: str, less_is_better: bool,
    commands: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """One line of the report; ratio > 1 means that we are better."""
    mine, theirs = statistics.median(ours), statistics.median(peer)
    ratio = theirs / mine if less_is_better else mine / theirs
    return {
        "case": case,
        "ours": round(mine, 4),
        "peer": round(theirs, 4),
        "peer_name": peer_name,
        "ratio": round(ratio, 3),
        "unit": unit,
        "runs": {"ours": [round(value, 4) for value in ours], "peer": [round(value, 4) for value in peer]},
        "commands": list(commands),
    }
