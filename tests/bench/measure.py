"""What the benchmarks share: which cases are wanted, alternating runs, medians, ratios, the cost of a process."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SING_BOX = "sing-box-1.12.12"
PLAIN = "plain"
BUDGET = "budget"

Sample = Mapping[str, float]
"""What one run measured: name -> value."""
Runs = Sequence[float]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, from /proc (proc(5)), its finished children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(pid: int) -> int:
    """Bytes of a process that are in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def alternate(name: str, runs: int, sides: Mapping[str, Callable[[], Sample]]) -> dict[str, dict[str, list[float]]]:
    """Each side ``runs`` times, in turn, the order turned each round: thing -> side -> values.

    A round that fails on one side is lost for all, and is made up for; three failures end the measurement.
    """
    found: dict[str, dict[str, list[float]]] = {}
    order, lost, done = list(sides), 0, 0
    while done < runs:
        try:
            taken = {side: sides[side]() for side in (order if done % 2 == 0 else reversed(order))}
        except RunFailed as error:
            lost += 1
            say(f"  {name}: a run failed, {error}")
            if lost == 3:
                raise
            continue
        done += 1
        for side in order:
            for thing, value in taken[side].items():
                found.setdefault(thing, {}).setdefault(side, []).append(value)
        shown = "  ".join(
            f"{side} {' '.join(f'{key}={value:.4g}' for key, value in taken[side].items())}" for side in order
        )
        say(f"  {name} {done}/{runs}: {shown}")
    return found


class RunFailed(Exception):
    """The load generator gave no figure; the message is what it said."""


@dataclass
class Bench:
    """One benchmark as it runs. ``runs`` of each side; ``only``: words of which a case's name must have one."""

    runs: int = 5
    only: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def wants(self, *cases: str) -> bool:
        """Whether any of these is to be measured."""
        return not self.only or any(word in case for word in self.only for case in cases)

    def row(
        self, case: str, ours: Runs, peer: Runs, *, peer_name: str, unit: str, commands: Sequence[str],
        less: bool = False,
    ) -> None:  # fmt: skip
        """Report medians. ``less``: the smaller value is the better one. Ratio > 1 means that we are better."""
        if not self.wants(case):
            return
        mine, theirs = statistics.median(ours), statistics.median(peer)
        better, worse = (theirs, mine) if less else (mine, theirs)
        self.rows.append(
            {
                "case": case,
                "ours": significant(mine),
                "peer": significant(theirs),
                "peer_name": peer_name,
                # A cost too small for the clock counts as one unit of it.
                "ratio": significant(better / max(worse, 1e-9)),
                "unit": unit,
                "runs": {
                    "ours": [significant(value) for value in ours],
                    "peer": [significant(value) for value in peer],
                },
                "commands": list(commands),
            }
        )
        say(line(self.rows[-1]))

    def budget(self, case: str, ours: Runs, budget: float, unit: str, commands: Sequence[str]) -> None:
        """A cost of ours against a fixed bound."""
        self.row(case, ours, [budget], peer_name=BUDGET, unit=unit, commands=commands, less=True)


def significant(value: float) -> float:
    """Four digits are more than any of this is good for."""
    return float(f"{value:.4g}")


def line(row: Mapping[str, Any]) -> str:
    """A row for a person."""
    figures = f"{row['ours']:>10.4g} {row['peer']:>10.4g} {row['unit']:12} {row['ratio']:>7.4g}"
    return f"{row['case']:46} {figures}  against {row['peer_name']}"
