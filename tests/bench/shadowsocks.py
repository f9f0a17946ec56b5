"""Shadowsocks in bulk: iperf3 through a client (ours, or sing-box) to one sing-box server.

The client is a ``direct`` inbound that forwards to the iperf3 server through its Shadowsocks outbound: the same
configuration for both, the same server for both, all on loopback of one namespace. CPU is the client process's own.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import Host as Plan
from gateway.lab.topology import Topology
from tests import peers
from tests.bench.load import bulk, iperf3
from tests.bench.measure import SING_BOX, Bench, Sample, alternate, cpu_seconds, say
from tests.bench.rig import BULK
from tests.interop.test_shadowsocks import PASSWORDS

METHODS = ("aes-128-gcm", "2022-blake3-aes-128-gcm")
SECONDS = 3
SERVER, CLIENTS = 8388, {"ours": 9001, "peer": 9002}


def run(bench: Bench) -> None:
    for method in METHODS:
        cases = [f"{method} {direction}" for direction in ("up", "down")]
        if bench.wants(*(f"{thing} {case}" for case in cases for thing in ("throughput", "cpu"))):
            with Lab(Topology("bench", (Plan("host"),))) as lab:
                measure(bench, lab, method)


def client(method: str, port: int) -> dict[str, Any]:
    outbound = {"type": "shadowsocks", "server": "127.0.0.1", "server_port": SERVER, "method": method}
    forward = {"type": "direct", "listen": "127.0.0.1", "listen_port": port}
    return {
        "log": {"level": "warn"},
        "inbounds": [forward | {"override_address": "127.0.0.1", "override_port": BULK}],
        "outbounds": [outbound | {"password": PASSWORDS[method]}],
    }


@contextlib.contextmanager
def running(lab: Lab, method: str) -> Iterator[dict[str, Process]]:
    """Server and both clients."""
    host, sing_box = lab.host("host"), [str(peers.path("sing-box")), "run", "-c"]
    started(host, [str(peers.path("iperf3")), "-s", "-p", str(BULK)], BULK)
    inbound = {"type": "shadowsocks", "listen": "127.0.0.1", "listen_port": SERVER, "method": method}
    config = {"log": {"level": "warn"}, "inbounds": [inbound | {"password": PASSWORDS[method]}]}
    started(host, [*sing_box, written(lab, "server", config)], SERVER)
    ours = [sys.executable, "-m", "gateway", "run", "--instance", f"bench-{lab.id}", "-c"]
    yield {
        name: started(host, [*command, written(lab, name, client(method, port))], port)
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


def measure(bench: Bench, lab: Lab, method: str) -> None:
    host = lab.host("host")
    with running(lab, method) as processes:
        for direction in ("up", "down"):
            commands = {
                name: iperf3("127.0.0.1", SECONDS, down=direction == "down", streams=1, port=port)
                for name, port in CLIENTS.items()
            }
            sides = {name: partial(once, host, processes[name], command) for name, command in commands.items()}
            case = f"{method} {direction}"
            if direction == "up":
                sides["control"] = sides["peer"]
            found = alternate(f"shadowsocks {case}", bench.runs, sides)
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
