"""Flows that userspace carries: captured by tproxy, sniffed, then direct; the same by sing-box's tproxy inbound.

Bulk is iperf3 with two streams, connections are wrk's with ``Connection: close``. CPU is that of the relaying process,
user and system; memory is what it grows by, a flow, while many connections stand idle.
"""

from __future__ import annotations

import contextlib
import socket
import time
from functools import partial
from typing import Any

from tests.bench.carried import ROW, SIDES, check, rate, throughput
from tests.bench.load import connections, told, wrk
from tests.bench.measure import Bench, Sample, alternate, resident
from tests.bench.rig import HTTP, Rig, Router, rig
from tests.bench.rules import BY_NAME, OUTBOUNDS

IDLE = 2000
"""Idle flows: two descriptors each in the relay, one here and one in nginx."""
TPROXY = 7893
NFT = f"""
table inet divert {{
    chain prerouting {{
        type filter hook prerouting priority mangle; policy accept;
        iifname "lan" fib daddr type != local meta l4proto {{ tcp, udp }} tproxy to :{TPROXY} meta mark set 1 accept
    }}
}}
"""


def config() -> dict[str, Any]:
    """Rules that need a name, behind a rule that sniffs: whatever has none of them is direct."""
    return {"log": {"level": "warn"}, "outbounds": OUTBOUNDS, "route": {"rules": BY_NAME, "final": "direct"}}


def run(bench: Bench) -> None:
    with rig("ours", "plain", "peer") as made:
        made.iperf3()
        made.nginx()
        made.plain("plain")
        # So that each wrk connection is captured anew and nothing is carried by the kernel.
        made.ours("ours", config())
        divert = made["peer"].host
        for words in ("rule add fwmark 1 lookup 100", "route add local default dev lo table 100"):
            divert.run(["ip", *words.split()], check=True)
        inbound = {"type": "tproxy", "tag": "tproxy", "listen": "::", "listen_port": TPROXY}
        made.sing_box("peer", config() | {"inbounds": [inbound]}, ready=[("tcp", TPROXY)], nft=NFT)
        check(made)
        for direction in ("up", "down"):
            throughput(bench, made, "relay", f"tcp {direction} gso-on", direction == "down")
        rate(bench, made, "relay", "connections tcp gso-on", "cpu connection tcp")
        latency(bench, made)
        memory(bench, made)


def latency(bench: Bench, made: Rig) -> None:
    """What the relay adds to a new connection and its first answer, one at a time, over a router that only forwards."""
    if not bench.wants("latency connect tcp added"):
        return
    commands = {name: wrk(made[name].target, 1, 1) for name in ("plain", "ours", "peer")}

    def once(name: str) -> Sample:
        return {"ms": connections(made.client, commands[name], 1)["p50"]}

    found = alternate("relay latency", bench.runs, {name: partial(once, name) for name in commands})["ms"]
    added = {
        name: [max(mine - base, 1e-3) for mine, base in zip(found[name], found["plain"], strict=True)] for name in SIDES
    }
    shown = [" ".join(command) for command in commands.values()]
    bench.row("latency connect tcp added", added["ours"], added["peer"], unit="ms", less=True, commands=shown, **ROW)


def memory(bench: Bench, made: Rig) -> None:
    if not bench.wants("memory idle flow tcp"):
        return

    def once(router: Router) -> Sample:
        before = resident(router.pid)
        with contextlib.ExitStack() as stack:
            made.client.call(lambda: stand(stack, router.target))
            time.sleep(1)
            grown = resident(router.pid) - before
        time.sleep(0.5)
        return {"KB": max(grown / IDLE / 1024, 0.01)}

    # A process keeps what it once had: only its first round shows what flows need. One round a fresh process.
    sides = {name: partial(fresh, made, name, once) for name in SIDES}
    found = alternate("relay memory", bench.runs, sides)["KB"]
    shown = [f"{IDLE} connections, one HTTP request each, kept open"]
    bench.row("memory idle flow tcp", found["ours"], found["peer"], unit="KB/flow", less=True, commands=shown, **ROW)


def fresh(made: Rig, name: str, work: Any) -> Sample:
    """Start the process anew and warm it a little, then measure."""
    made.restart(name)
    told(made.client, wrk(made[name].target, 1, 16), 1)
    time.sleep(0.3)
    found: Sample = work(made[name])
    return found


def stand(stack: contextlib.ExitStack, target: str) -> None:
    """Connections that have asked once (so that they were sniffed) and then say nothing."""
    for _ in range(IDLE):
        sock = stack.enter_context(socket.create_connection((target, HTTP), 10))
        sock.sendall(b"GET / HTTP/1.1\r\nHost: idle.example\r\n\r\n")
        answer = sock.recv(1024)
        assert answer.startswith(b"HTTP/1.1 200"), answer
