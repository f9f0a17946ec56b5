"""Flows that the kernel decides: our router beside one that only forwards, and beside sing-box with the same rules.

20 rules, ``geoip-cn``, ``geosite-cn``, and for ours rules by device (:mod:`tests.bench.rules`). sing-box: tun with
auto_route and auto_redirect. Bulk is iperf3 with two streams, connections are wrk's with ``Connection: close`` against
nginx; with segmentation offloads on all cables, without, and without but merged by receivers.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from tests.bench.load import bulk, connections, iperf3, wrk
from tests.bench.measure import PLAIN, SING_BOX, Bench, RunFailed, Sample, alternate, cpu_seconds, say
from tests.bench.rig import Rig, Router, rig
from tests.bench.rules import BY_DEVICE, GEOSITE, household

SECONDS = 2
TUN = {
    "type": "tun",
    "tag": "tun",
    "interface_name": "tun0",
    "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"],
    "auto_route": True,
    "auto_redirect": True,
}
SIDES = {"ours": "ours", "plain": "plain", "peer": "peer"}
CONTROLLED = "throughput tcp up gso-on"


def run(bench: Bench) -> None:
    with rig("ours", "plain", "peer") as made:
        made.iperf3()
        made.nginx()
        made.plain("plain")
        rules = household(GEOSITE)
        rules["route"]["rules"][:0] = BY_DEVICE
        made.ours("ours", rules)
        config = household(GEOSITE)
        config["inbounds"] = [TUN]
        config["route"]["auto_detect_interface"] = True
        made.sing_box("peer", config)
        check(made)
        for gso, merge in ((True, False), (False, False), (False, True)):
            measure(bench, made, gso, merge)


def check(made: Rig) -> None:
    """The kernel carries ours, userspace sing-box's: else this would measure something else."""
    deadline = time.monotonic() + 30
    spent: dict[str, float] = {}
    for name in ("ours", "peer"):
        router = made[name]
        while True:
            before = cpu_seconds(router.pid)
            try:
                bulk(made.client, iperf3(router.target, 1, down=False), 1)
                spent[name] = cpu_seconds(router.pid) - before
                if name == "ours" or spent[name] > 0.05:
                    break
            except RunFailed:
                pass
            router.alive()
            assert time.monotonic() < deadline, f"nothing passes {name}"
    say(f"CPU seconds of the router's process in one second of bulk: {spent}")
    assert spent["ours"] < 0.05, "our process carries what the kernel should"
    counters = made["ours"].host.run(["nft", "-j", "list", "counters", "table", "inet", "gateway"]).json()
    packets = {
        item["counter"]["name"]: item["counter"]["packets"] for item in counters["nftables"] if "counter" in item
    }
    assert packets["to_direct"] > 0, packets


def measure(bench: Bench, made: Rig, gso: bool, merge: bool) -> None:
    state = "gso-on" if gso else "gso-off gro-on" if merge else "gso-off"
    made.offload(gso, merge)
    for direction in ("up", "down"):
        case = f"throughput tcp {direction} {state}"
        if bench.wants(*(f"{case} {against}" for against in (PLAIN, SING_BOX)), f"{case} control"):
            command = partial(iperf3, seconds=SECONDS, down=direction == "down")
            compare(bench, made, case, "Mbit/s", {name: command(made[name].target) for name in SIDES}, bulk)
    case = f"connections tcp {state}"
    if bench.wants(f"{case} {PLAIN}", f"{case} {SING_BOX}"):
        compare(bench, made, case, "conn/s", {name: wrk(made[name].target, SECONDS) for name in SIDES}, connections)


def compare(bench: Bench, made: Rig, case: str, unit: str, commands: dict[str, list[str]], load: Any) -> None:
    sides = {name: partial(once, made, made[name], command, load) for name, command in commands.items()}
    if case == CONTROLLED:
        sides["control"] = sides["plain"]
    found = alternate(case, bench.runs, sides)[unit]
    for name, against in (("plain", PLAIN), ("peer", SING_BOX)):
        shown = [" ".join(commands[side]) for side in ("ours", name)]
        bench.row(f"{case} {against}", found["ours"], found[name], peer_name=against, unit=unit, commands=shown)
    if case == CONTROLLED:
        shown = [" ".join(commands["plain"])] * 2
        bench.row(f"{case} control", found["control"], found["plain"], peer_name=PLAIN, unit=unit, commands=shown)


def once(made: Rig, router: Router, command: list[str], load: Any) -> Sample:
    made.forget()
    found: Sample = load(made.client, command, SECONDS)
    router.alive()
    return found
