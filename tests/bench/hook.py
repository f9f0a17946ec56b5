"""What the process programs cost the router's own flows: socket(2) and connect(2) of UDP, and sendto(2) of a socket
that is not connected, attached and not.

Each round measures every side in turn, in a network namespace and a cgroup of its own. ``python -m tests.bench.hook``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from gateway.kernel.bpf.process import ProcessMarks
from gateway.kernel.plan import ProcessPlan
from gateway.lab.lab import Lab
from gateway.lab.topology import Host, Topology
from gateway.route.item.pattern import Patterns

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, TRIES, FLOWS = 15, 30, 200
"""Of each round the best try counts: what others do on the machine only ever adds."""
SO_COOKIE = 57
OFF = "not attached"
PLANS: Mapping[str, ProcessPlan | None] = {
    OFF: None,
    "by user": ProcessPlan(uids=((0, 1),), classes=((0, 0), (1, 1))),
    "by path": ProcessPlan(paths=(("/opt/tool", 1),), classes=((0, 0), (1, 1))),
    "by group": ProcessPlan(gids=((4100, 1),), classes=((0, 0), (1, 1))),
    "by expression and cgroup": ProcessPlan(
        expressions=((Patterns(["^/opt/"]), 1),), cgroups=(("/far", 2),), classes=((0, 0), (1, 1))
    ),
}
Taken = dict[str, dict[str, list[float]]]
"""Measure -> side -> ns, a round each."""


def taken() -> Taken:
    """Of each measure. Needs root."""
    with Lab(Topology("hook", (Host("router", addresses={"lo": ()}),), ())) as lab:
        host = lab.host("router")
        found: Taken = host.run(
            [sys.executable, "-m", "tests.bench.hook", str(host.group)], cwd=ROOT, check=True, timeout=300
        ).json()
    return found


def inside(group: Path) -> Taken:
    """On the host of the lab, below ``group``."""
    found: Taken = {measure: {side: [] for side in PLANS} for measure in MEASURES}
    for turn in range(ROUNDS):
        for side in PLANS if turn % 2 == 0 else reversed(PLANS):
            for measure, ns in once(group, PLANS[side]).items():
                found[measure][side].append(ns)
    return found


def once(group: Path, plan: ProcessPlan | None) -> dict[str, float]:
    """ns of each measure."""
    if plan is None:
        return best()
    with closing(ProcessMarks(group, plan)) as marks:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
            marks.owner(int.from_bytes(first.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder))
        return best()


def best() -> dict[str, float]:
    return {measure: min(attempt() for _ in range(TRIES)) for measure, attempt in MEASURES.items()}


def flows() -> float:
    """ns a flow."""
    begun = time.perf_counter_ns()
    for _ in range(FLOWS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("127.0.0.1", 9))
        sock.close()
    return (time.perf_counter_ns() - begun) / FLOWS


def datagrams() -> float:
    """ns a datagram to somebody who does not read."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
    ):
        far.bind(("127.0.0.1", 0))
        place = far.getsockname()
        begun = time.perf_counter_ns()
        for _ in range(FLOWS):
            near.sendto(b"", place)
        return (time.perf_counter_ns() - begun) / FLOWS


MEASURES = {"flow": flows, "datagram": datagrams}


if __name__ == "__main__":
    if os.geteuid():
        sys.exit("needs root")
    print(json.dumps(inside(Path(sys.argv[1])) if sys.argv[1:] else taken()))
