"""What a LAN notices: dials every 5 ms by a program of its own, and figures of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from types import TracebackType
from typing import NamedTuple

from gateway.lab.client.dials import REFUSED, RESET, SILENT, Target
from gateway.lab.host import Host
from gateway.lab.process import Process


class Made(NamedTuple):
    """One dial. Times are of ``time.monotonic``; ``said``: the far end's word, or one of the three above."""

    name: str
    begun: float
    took: float
    said: str

    @property
    def answered(self) -> bool:
        return self.said not in (REFUSED, RESET, SILENT)


class Dials:
    """Dials from ``host`` in the with block, the targets in turn, one each ``pace`` seconds; afterwards ``made``, in
    the order in which they began."""

    def __init__(self, host: Host, targets: Sequence[Target], pace: float = 0.005, patience: float = 1.0) -> None:
        self._host = host
        words = [",".join(map(str, filter(None, one))) for one in targets]
        options = ["--pace", str(pace), "--patience", str(patience)]
        self._command = [sys.executable, "-m", "gateway.lab.client.dials", *options, *words]
        self._process: Process | None = None
        self.made: list[Made] = []

    def __enter__(self) -> Dials:
        self._process = self._host.popen(self._command)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        result = self._process.stop()
        self.made = sorted((Made(*json.loads(line)) for line in result.out.splitlines()), key=lambda made: made.begun)
        assert kind is not None or result.ok, result.err


class Figures(NamedTuple):
    """``gap``: the longest time in seconds from one answer to the next, over all targets together; ``slowest``: the
    longest dial that was answered."""

    dials: int
    answered: int
    refused: int
    reset: int
    silent: int
    misrouted: int
    gap: float
    slowest: float


def figures(made: Iterable[Made], wrong: Callable[[Made], bool] = lambda made: False) -> Figures:
    """``wrong``: whether an answered dial went a way that it must not go."""
    every = list(made)
    good = [one for one in every if one.answered]
    ends = sorted(one.begun + one.took for one in good)
    gap = max((later - earlier for earlier, later in pairwise(ends)), default=0.0)
    count = {said: sum(one.said == said for one in every) for said in (REFUSED, RESET, SILENT)}
    slowest = max((one.took for one in good), default=0.0)
    misrouted = sum(map(wrong, good))
    return Figures(
        len(every), len(good), count[REFUSED], count[RESET], count[SILENT], misrouted, gap, slowest
    )  # fmt: skip


def table(rows: Iterable[tuple[str, Figures]]) -> str:
    """Lines of figures, a heading above, times in milliseconds."""
    lines = [f"{'':<28}{'dials':>7}{'answered':>10}{'refused':>9}{'reset':>7}{'silent':>8}{'misrouted':>11}"
             f"{'longest gap':>13}{'slowest':>9}"]  # fmt: skip
    lines += [
        f"{name:<28}{f.dials:>7}{f.answered:>10}{f.refused:>9}{f.reset:>7}{f.silent:>8}{f.misrouted:>11}"
        f"{f.gap * 1000:>10.0f} ms{f.slowest * 1000:>6.0f} ms"
        for name, f in rows
    ]
    return "\n".join(lines)
