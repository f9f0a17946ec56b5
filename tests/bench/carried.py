"""Flows that userspace carries, ours beside sing-box: throughput, connections, and the CPU of the process that carries
them (user and system)."""

from __future__ import annotations

from functools import partial

from tests.bench.load import bulk, connections, iperf3, wrk
from tests.bench.measure import SING_BOX, Bench, RunFailed, Sample, alternate, cpu_seconds, say
from tests.bench.rig import Rig

SECONDS = 3
TRIES = 3
ROW = {"peer_name": SING_BOX}
SIDES = ("ours", "peer")


def check(made: Rig) -> None:
    """Both processes carry what passes, if not at once: sing-box resets connections when it has just started."""
    for side in SIDES:
        router = made[side]
        for left in reversed(range(TRIES)):
            before = cpu_seconds(router.pid)
            try:
                bulk(made.client, iperf3(router.target, 1, down=False), 1)
                break
            except RunFailed:
                if not left:
                    raise
        spent = cpu_seconds(router.pid) - before
        say(f"CPU seconds of {side} in one second of bulk: {spent:.2f}")
        assert spent > 0.05, f"{side} carries nothing"


def throughput(bench: Bench, made: Rig, what: str, case: str, down: bool) -> None:
    """Rows ``throughput CASE`` and ``cpu CASE`` of ``what``; upwards with a control, the peer against itself."""
    control = f"throughput {case} control"
    if not bench.wants(f"throughput {case}", f"cpu {case}", control):
        return
    commands = {side: iperf3(made[side].target, SECONDS, down=down) for side in SIDES}

    def once(side: str) -> Sample:
        router = made[side]
        before = cpu_seconds(router.pid)
        found = bulk(made.client, commands[side], SECONDS)
        router.alive()
        return {"Mbit/s": found["Mbit/s"], "s/GB": (cpu_seconds(router.pid) - before) / (found["bytes"] / 1e9)}

    runs = {side: partial(once, side) for side in SIDES}
    if not down:
        runs["control"] = runs["peer"]
    found = alternate(f"{what} {case}", bench.runs, runs)
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["Mbit/s"], found["s/GB"]
    bench.row(f"throughput {case}", rates["ours"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)
    bench.row(f"cpu {case}", costs["ours"], costs["peer"], unit="CPU s/GB", less=True, commands=shown, **ROW)
    if not down:
        bench.row(control, rates["control"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)


def rate(bench: Bench, made: Rig, what: str, case: str, cpu: str) -> None:
    """Rows ``case``, connections a second, and ``cpu``, microseconds each, of ``what``."""
    if not bench.wants(case, cpu):
        return
    commands = {side: wrk(made[side].target, SECONDS) for side in SIDES}

    def once(side: str) -> Sample:
        router = made[side]
        made.forget()
        before = cpu_seconds(router.pid)
        found = connections(made.client, commands[side], SECONDS)
        router.alive()
        return {**found, "cpu": (cpu_seconds(router.pid) - before) / (found["conn/s"] * SECONDS) * 1e6}

    found = alternate(f"{what} {case}", bench.runs, {side: partial(once, side) for side in SIDES})
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["conn/s"], found["cpu"]
    bench.row(case, rates["ours"], rates["peer"], unit="conn/s", commands=shown, **ROW)
    bench.row(cpu, costs["ours"], costs["peer"], unit="us/conn", less=True, commands=shown, **ROW)
