"""What steering costs: learned names and rules into the kernel, a socket of this host, a packet beside many prefixes.

``insert``: one element of a learned set beside 100,000 prefixes; ``learn``: a name with two addresses, in every profile
that learns. ``load``: rules compiled and in the kernel. ``hook``: one connect(2) with the process programs attached.
``packets`` and ``connections``: routers whose tables differ by their number of prefixes, against that with 1,000.
"""

from __future__ import annotations

import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench import hook
from tests.bench.forward import SECONDS, once
from tests.bench.load import bulk, connections, iperf3, wrk
from tests.bench.measure import Bench, alternate
from tests.bench.rig import Rig, rig
from tests.bench.rules import GEOSITE, household

INSERT, LOAD = 200.0, 1000.0
"""Budgets: microseconds for one element, at the 99th percentile; milliseconds for all rules."""
LEARN = 1000.0
"""Microseconds that an answer of DNS may wait for the kernel."""
PREFIXES = 100_000
COUNTS = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1M": 1_000_000}
FEW = "1k"
PATIENCE = 300.0
"""Seconds for a million prefixes to be loaded."""


def run(bench: Bench) -> None:
    if bench.wants("insert", "learn", "load"):
        with rig("bare") as made:
            learned(bench, made)
    if bench.wants("hook"):
        hooked(bench)
    if bench.wants("packets", "connections"):
        with rig(*COUNTS) as made:
            flat(bench, made)


def learned(bench: Bench, made: Rig) -> None:
    """In a namespace of its own, so that nothing else steers there."""
    rules, many = household(GEOSITE), household(GEOSITE)
    numbers = random.Random(1).sample(range(1 << 22), PREFIXES)
    cidrs = [f"{20 + (number >> 16)}.{number >> 8 & 255}.{number & 255}.0/28" for number in numbers]
    many["route"]["rule_set"].append({"type": "inline", "tag": "many", "rules": [{"ip_cidr": cidrs}]})
    many["route"]["rules"].insert(0, {"rule_set": "many", "outbound": "proxy"})
    for name, value in (("rules", rules), ("many", many)):
        file: Path = made.write(f"{name}.json", value)
        command = [sys.executable, "-m", "tests.bench.learning", str(file), str(bench.runs)]
        found = json.loads(made["bare"].host.run(command, timeout=PATIENCE, check=True).out)
        told = [" ".join(command)]
        if name == "rules":
            bench.budget("load geoip-cn geosite-cn 20 rules", found["load"], LOAD, "ms", told)
        else:
            bench.budget("insert p99 100k", found["insert"], INSERT, "us", told)
            bench.budget("learn name median 100k", found["learn"], LEARN, "us", told)


def hooked(bench: Bench) -> None:
    """Nanoseconds of socket(2) and connect(2), and of a datagram."""
    for measure, taken in hook.taken().items():
        for plan in taken:
            if plan != hook.OFF:
                found, without = taken[plan], taken[hook.OFF]
                bench.row(f"hook {measure} {plan}", found, without, peer_name=hook.OFF, unit="ns", less=True,
                          commands=["python -m tests.bench.hook"])  # fmt: skip


def flat(bench: Bench, made: Rig) -> None:
    made.iperf3()
    made.nginx()
    for name, count in COUNTS.items():
        hold(made, name, count)
    made.offload(False)
    loads: dict[str, tuple[str, Any, Any]] = {
        "packets tcp 1500": ("Mbit/s", bulk, partial(iperf3, seconds=SECONDS, down=False)),
        "connections tcp": ("conn/s", connections, partial(wrk, seconds=SECONDS)),
    }
    for case, (unit, load, command) in loads.items():
        if not bench.wants(case):
            continue
        commands = {name: command(made[name].target) for name in COUNTS}
        sides = {name: partial(once, made, made[name], commands[name], load) for name in COUNTS}
        found = alternate(case, bench.runs, sides)[unit]
        for name in COUNTS:
            if name != FEW:
                shown = [" ".join(commands[one]) for one in (name, FEW)]
                bench.row(f"{case} {name}", found[name], found[FEW], peer_name=f"{FEW} prefixes", unit=unit,
                          commands=shown)  # fmt: skip


def hold(made: Rig, name: str, count: int) -> None:
    """A router that steers by ``count`` prefixes."""
    router, file = made.plain(name), made.lab.folder / f"{name}.stands"
    router.process = router.host.popen([sys.executable, "-m", "tests.bench.prefixes", str(count), str(file)])
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        router.alive()
        assert time.monotonic() < deadline, f"{count} prefixes are not in the kernel"
        time.sleep(0.05)
