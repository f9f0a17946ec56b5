"""Shadowsocks in bulk: iperf3 through a client (ours, or sing-box) to one sing-box server, over loopback.

The client is a ``direct`` inbound that forwards to the iperf3 server through its Shadowsocks outbound: the same
configuration file for both, the same server for both. CPU is the client process's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests import peers
from tests.bench.measure import alternate, cpu_seconds, row, say
from tests.interop.harness import free_port, program
from tests.interop.test_shadowsocks import PASSWORDS

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("aes-128-gcm", "2022-blake3-aes-128-gcm")
SECONDS = 4
PEER = "sing-box-1.12.12"


def run(rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for method in METHODS:
        rows += bench(method, rounds)
    return rows


def client(method: str, port: int, server: int, target: int) -> dict[str, Any]:
    outbound = {"type": "shadowsocks", "server": "127.0.0.1", "server_port": server, "method": method}
    forward = {"type": "direct", "listen": "127.0.0.1", "listen_port": port}
    return {
        "log": {"level": "warn"},
        "inbounds": [forward | {"override_address": "127.0.0.1", "override_port": target}],
        "outbounds": [outbound | {"password": PASSWORDS[method]}],
    }


@contextlib.contextmanager
def running(kind: str, method: str, server: int, target: int) -> Any:
    """A client of ``kind``; gives (port, process)."""
    port = free_port()
    if kind == "ours":
        command = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "gateway", "run", "-c", "CONFIG"]
        command += ["--instance", f"bench-{os.getpid()}-{port}"]
    else:
        command = [str(peers.path("sing-box")), "run", "-c", "CONFIG"]
    config = client(method, port, server, target)
    say(f"{kind}: {json.dumps(config)}")
    with program(*command, config=config, ready=port) as process:
        yield port, process


def bench(method: str, rounds: int) -> list[dict[str, Any]]:
    iperf, server, target = str(peers.path("iperf3")), free_port(), free_port()
    inbound = {"type": "shadowsocks", "listen": "127.0.0.1", "listen_port": server}
    config = {"log": {"level": "warn"}, "inbounds": [inbound | {"method": method, "password": PASSWORDS[method]}]}
    rows = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=server))
        stack.enter_context(program(iperf, "-s", "-p", str(target), ready=None))
        sides = {
            name: stack.enter_context(running(kind, method, server, target))
            for name, kind in (("ours", "ours"), ("peer", "peer"), ("control", "peer"))
        }
        for direction in ("up", "down"):
            command = [iperf, "-c", "127.0.0.1", "-t", str(SECONDS), "-J", *(["-R"] if direction == "down" else [])]
            shown = [" ".join([*command, "-p", "PORT"])]
            found = alternate(rounds, partial(once, command, *sides["ours"]), partial(once, command, *sides["peer"]))
            case = f"{method} {direction}"
            say(f"{case}: {found}")
            named = {"peer_name": PEER, "commands": shown}
            rows.append(row(f"throughput {case}", *found["Mbit/s"], unit="Mbit/s", less_is_better=False, **named))
            rows.append(row(f"cpu {case}", *found["s/GB"], unit="CPU s/GB", less_is_better=True, **named))
            control = alternate(
                rounds, partial(once, command, *sides["control"]), partial(once, command, *sides["peer"])
            )
            rows.append(
                row(f"throughput {case} control", *control["Mbit/s"], unit="Mbit/s", less_is_better=False, **named)
            )
    return rows


def once(command: list[str], port: int, process: subprocess.Popen[bytes]) -> dict[str, float]:
    before = cpu_seconds(process.pid)
    done = subprocess.run(
        [*command, "-p", str(port)], capture_output=True, text=True, check=False, timeout=SECONDS + 60
    )
    report = json.loads(done.stdout)
    assert "end" in report, done.stdout
    received = report["end"]["sum_received"]
    used = cpu_seconds(process.pid) - before
    return {"Mbit/s": received["bits_per_second"] / 1e6, "s/GB": used / (received["bytes"] / 1e9)}
