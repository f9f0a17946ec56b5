"""An outbound in bulk: iperf3 through a client (ours, or sing-box) to one sing-box server.

The client is a ``direct`` inbound that forwards to the iperf3 server through the outbound: the same configuration for
both, the same server for both, all on loopback of one namespace. CPU is the client process's own.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import Host as Plan
from gateway.lab.topology import Topology
from tests import peers
from tests.bench.load import bulk, iperf3
from tests.bench.measure import SING_BOX, Bench, Sample, alternate, cpu_seconds, say
from tests.bench.rig import BULK

SECONDS = 3
SERVER, CLIENTS = 8388, {"ours": 9001, "peer": 9002}


class Pair(NamedTuple):
    """``name`` of the case; the outbound, and the inbound of the server that it leads to, without their addresses."""

    name: str
    outbound: dict[str, Any]
    inbound: dict[str, Any]


def wanted(bench: Bench, name: str) -> bool:
    """Whether anything of the pair of this name is to be measured."""
    return bench.wants(
        *(f"{thing} {name} {direction}" for thing in ("throughput", "cpu") for direction in ("up", "down"))
    )


def run(bench: Bench, pair: Pair) -> None:
    with Lab(Topology("bench", (Plan("host"),))) as lab:
        measure(bench, lab, pair)


def client(pair: Pair, port: int) -> dict[str, Any]:
    forward = {"type": "direct", "listen": "127.0.0.1", "listen_port": port}
    return {
        "log": {"level": "warn"},
        "inbounds": [forward | {"override_address": "127.0.0.1", "override_port": BULK}],
        "outbounds": [{**pair.outbound, "server": "127.0.0.1", "server_port": SERVER}],
    }


@contextlib.contextmanager
def running(lab: Lab, pair: Pair) -> Iterator[dict[str, Process]]:
    """Server and both clients."""
    host, sing_box = lab.host("host"), [str(peers.path("sing-box")), "run", "-c"]
    started(host, [str(peers.path("iperf3")), "-s", "-p", str(BULK)], BULK)
    inbound = {**pair.inbound, "listen": "127.0.0.1", "listen_port": SERVER}
    config = {"log": {"level": "warn"}, "inbounds": [inbound]}
    started(host, [*sing_box, written(lab, "server", config)], SERVER)
    ours = [sys.executable, "-m", "gateway", "run", "--instance", f"bench-{lab.id}", "-c"]
    yield {
        name: started(host, [*command, written(lab, name, client(pair, port))], port)
        for (name, port), command in zip(CLIENTS.items(), (ours, sing_box), strict=True)
    }


def written(lab: Lab, name: str, config: dict[str, Any]) -> str:
    say(f"{name}: {json.dumps(config)}")
    file = lab.folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return str(file)


def started(host: Host, command: list[str], port: int) -> Process:
    process = host.popen(command)
    host.wait_listening([("tcp", port)], process)
    return process


def measure(bench: Bench, lab: Lab, pair: Pair) -> None:
    host = lab.host("host")
    with running(lab, pair) as processes:
        for direction in ("up", "down"):
            commands = {
                name: iperf3("127.0.0.1", SECONDS, down=direction == "down", streams=1, port=port)
                for name, port in CLIENTS.items()
            }
            sides = {name: partial(once, host, processes[name], command) for name, command in commands.items()}
            case = f"{pair.name} {direction}"
            if direction == "up":
                sides["control"] = sides["peer"]
            found = alternate(f"{pair.outbound['type']} {case}", bench.runs, sides)
            shown = [" ".join(command) for command in commands.values()]
            for thing, unit, less in (("throughput", "Mbit/s", False), ("cpu", "CPU s/GB", True)):
                row = partial(bench.row, peer_name=SING_BOX, unit=unit, less=less, commands=shown)
                row(f"{thing} {case}", found[unit]["ours"], found[unit]["peer"])
                if "control" in sides and thing == "throughput":
                    row(f"{thing} {case} control", found[unit]["control"], found[unit]["peer"])


def once(host: Host, process: Process, command: list[str]) -> Sample:
    before = cpu_seconds(process.pid)
    found = bulk(host, command, SECONDS)
    assert process.running, process.told()
    used = cpu_seconds(process.pid) - before
    return {"Mbit/s": found["Mbit/s"], "CPU s/GB": used / (found["bytes"] / 1e9)}
