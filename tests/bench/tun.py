"""A LAN behind a tun inbound, flows that userspace carries (sniffed, then direct): ours beside sing-box's tun with its
stack ``system``; with auto_route alone, and with auto_redirect too.

Bulk is iperf3 with two streams, connections are wrk's with ``Connection: close``. CPU is that of the relaying process,
user and system.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.bench.load import bulk, connections, iperf3, wrk
from tests.bench.measure import SING_BOX, Bench, Sample, alternate, cpu_seconds, say
from tests.bench.rig import Rig, rig
from tests.bench.rules import BY_NAME, OUTBOUNDS

SECONDS = 3
ROW = {"peer_name": SING_BOX}
SIDES = ("ours", "peer")
WAYS = ("auto_route", "auto_redirect")


def config(redirect: bool) -> dict[str, Any]:
    tun = {
        "type": "tun",
        "tag": "tun",
        "interface_name": "tun0",
        "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
        "auto_route": True,
        "auto_redirect": redirect,
        "stack": "system",
    }
    # What sing-box dials would be led into its own device again but for the interface.
    route = {"rules": BY_NAME, "final": "direct", "default_interface": "wan"}
    return {"log": {"level": "warn"}, "inbounds": [tun], "outbounds": OUTBOUNDS, "route": route}


def run(bench: Bench) -> None:
    for word in WAYS:
        if bench.wants(*cases(word)):
            with rig("ours", "peer") as made:
                measure(bench, made, word)


def measure(bench: Bench, made: Rig, word: str) -> None:
    made.iperf3()
    made.nginx()
    made.alone("ours", config(word == "auto_redirect"))
    made.sing_box("peer", config(word == "auto_redirect"))
    check(made)
    for direction in ("up", "down"):
        throughput(bench, made, f"tcp {direction} {word}", direction == "down")
    rate(bench, made, word)


def cases(word: str) -> list[str]:
    bulky = [f"{what} tcp {direction} {word}" for what in ("throughput", "cpu") for direction in ("up", "down")]
    return [*bulky, f"throughput tcp up {word} control", f"connections tcp {word}", f"cpu connection tcp {word}"]


def check(made: Rig) -> None:
    """Both processes carry what passes."""
    for side in SIDES:
        router = made[side]
        before = cpu_seconds(router.pid)
        bulk(made.client, iperf3(router.target, 1, down=False), 1)
        spent = cpu_seconds(router.pid) - before
        say(f"CPU seconds of {side} in one second of bulk: {spent:.2f}")
        assert spent > 0.05, f"{side} carries nothing"


def throughput(bench: Bench, made: Rig, case: str, down: bool) -> None:
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

    runs = {"ours": partial(once, "ours"), "peer": partial(once, "peer")}
    if not down:
        runs["control"] = runs["peer"]
    found = alternate(f"tun {case}", bench.runs, runs)
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["Mbit/s"], found["s/GB"]
    bench.row(f"throughput {case}", rates["ours"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)
    bench.row(f"cpu {case}", costs["ours"], costs["peer"], unit="CPU s/GB", less=True, commands=shown, **ROW)
    if not down:
        bench.row(control, rates["control"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)


def rate(bench: Bench, made: Rig, word: str) -> None:
    case = f"connections tcp {word}"
    if not bench.wants(case, f"cpu connection tcp {word}"):
        return
    commands = {side: wrk(made[side].target, SECONDS) for side in SIDES}

    def once(side: str) -> Sample:
        router = made[side]
        made.forget()
        before = cpu_seconds(router.pid)
        found = connections(made.client, commands[side], SECONDS)
        router.alive()
        return {**found, "cpu": (cpu_seconds(router.pid) - before) / (found["conn/s"] * SECONDS) * 1e6}

    found = alternate(f"tun {case}", bench.runs, {side: partial(once, side) for side in SIDES})
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["conn/s"], found["cpu"]
    bench.row(case, rates["ours"], rates["peer"], unit="conn/s", commands=shown, **ROW)
    bench.row(
        f"cpu connection tcp {word}", costs["ours"], costs["peer"], unit="us/conn", less=True, commands=shown, **ROW
    )
