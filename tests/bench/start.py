"""What a start takes: the gateway on ``examples/`` in the home laboratory, its uplink unplugged (the lease is pending).

``ready``: from the start of the process until the kernel's rules send flows to a listener that accepts. ``memory``:
resident, a moment later; ``all`` counts dnsmasq and the reaper too. Beside it sing-box on ``examples/home.json`` with a
tproxy inbound, until it listens: it writes no rules.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from functools import partial
from pathlib import Path

from gateway.cli.lab import programs
from gateway.lab import cgroup
from gateway.lab.process import Process
from gateway.lab.stage import Stage
from tests import peers
from tests.bench.measure import BUDGET, SING_BOX, Bench, Sample, alternate, resident, say

READY, MEMORY = 2.0, 80.0
"""Budgets: seconds and megabytes."""
SETTLE = 1.0
PORT = 7893
HERE = {"source_mac_address", "process_path", "user", "group", "cgroup"}
"""Rules about devices and programs of this host: the sing-box beside us has none."""
CASES = ("ready home", "memory home", "memory home all")


def run(bench: Bench) -> None:
    if not bench.wants(*(f"{case} {BUDGET}" for case in CASES), *(f"{case} {SING_BOX}" for case in CASES), "control"):
        return
    stage = Stage(programs(proxy=False), random.SystemRandom().randrange(1 << 32))
    with stage.lab:
        measure(bench, stage)


def measure(bench: Bench, stage: Stage) -> None:
    files = [word for path in stage.write() for word in ("-c", str(path))]
    command = [sys.executable, "-m", "gateway", "run", *files, "--instance", stage.instance]
    config = stage.lab.folder / "peer.json"
    inbound = {"type": "tproxy", "tag": "tproxy", "listen": "::", "listen_port": PORT}
    value = {"log": {"level": "warn"}, **stage.rules(), "inbounds": [inbound]}
    value["route"]["rules"] = [rule for rule in value["route"]["rules"] if not HERE & rule.keys()]
    config.write_text(json.dumps(value))
    say(f"sing-box: {json.dumps(value)}")
    peer = [str(peers.path("sing-box")), "run", "-c", str(config)]
    sides = {"ours": partial(ours, stage, command), "peer": partial(theirs, stage, peer)}
    found = alternate("start", bench.runs, {**sides, "control": sides["peer"]})
    shown = [" ".join(command), " ".join(peer)]
    for case, thing, unit, budget in zip(
        CASES, ("ready", "MB", "all"), ("s", "MB", "MB"), (READY, MEMORY, MEMORY), strict=True
    ):
        bench.budget(f"{case} {BUDGET}", found[thing]["ours"], budget, unit, shown[:1])
        if thing != "all":
            values = found[thing]
            named = {"peer_name": SING_BOX, "unit": unit, "less": True, "commands": shown}
            bench.row(f"{case} {SING_BOX}", values["ours"], values["peer"], **named)
    values = found["ready"]
    bench.row(
        "ready home control", values["control"], values["peer"], peer_name=SING_BOX, unit="s", commands=shown, less=True
    )


def ours(stage: Stage, command: list[str]) -> Sample:
    router = stage.lab.host("router")
    begun = time.monotonic()
    process = router.popen(command)
    try:
        while not steered(stage, process):
            assert time.monotonic() < begun + 60, process.told()
        return settled(process, time.monotonic() - begun)
    finally:
        process.stop()
        router.run([sys.executable, "-m", "gateway", "down", "--instance", stage.instance])


def steered(stage: Stage, process: Process) -> bool:
    """The rules name a port, and it listens."""
    assert process.running, process.told()
    router = stage.lab.host("router")
    told = router.run(["nft", "list", "chain", "inet", "gateway", "deliver"]).out
    port = re.search(r"tproxy to :(\d+)", told)
    return port is not None and ("tcp", int(port[1])) in router.listeners()


def theirs(stage: Stage, command: list[str]) -> Sample:
    host = stage.lab.host("lan2")
    begun = time.monotonic()
    process = host.popen(command)
    try:
        host.wait_listening([("tcp", PORT), ("udp", PORT)], process)
        return settled(process, time.monotonic() - begun)
    finally:
        process.stop()


def settled(process: Process, seconds: float) -> Sample:
    time.sleep(SETTLE)
    assert process.running, process.told()
    every = sum(map(resident, cgroup.pids(Path(process.group))))
    return {"ready": seconds, "MB": resident(process.pid) / 1e6, "all": every / 1e6}
