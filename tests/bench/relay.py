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

from tests.bench.load import bulk, connections, iperf3, told, wrk
from tests.bench.measure import SING_BOX, Bench, Sample, alternate, cpu_seconds, resident, say
from tests.bench.rig import HTTP, Rig, Router, rig
from tests.bench.rules import BY_NAME, OUTBOUNDS

SECONDS = 3
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
ROW = {"peer_name": SING_BOX}


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
            throughput(bench, made, f"tcp {direction} gso-on", direction == "down")
        rate(bench, made)
        latency(bench, made)
        memory(bench, made)


def check(made: Rig) -> None:
    """Both processes carry what passes."""
    for name in ("ours", "peer"):
        router = made[name]
        before = cpu_seconds(router.pid)
        bulk(made.client, iperf3(router.target, 1, down=False), 1)
        spent = cpu_seconds(router.pid) - before
        say(f"CPU seconds of {name} in one second of bulk: {spent:.2f}")
        assert spent > 0.05, f"{name} carries nothing"


def throughput(bench: Bench, made: Rig, case: str, down: bool) -> None:
    control = f"throughput {case} control"
    if not bench.wants(f"throughput {case}", f"cpu {case}", control):
        return
    commands = {name: iperf3(made[name].target, SECONDS, down=down) for name in ("ours", "peer")}

    def once(name: str) -> Sample:
        router = made[name]
        before = cpu_seconds(router.pid)
        found = bulk(made.client, commands[name], SECONDS)
        router.alive()
        return {"Mbit/s": found["Mbit/s"], "s/GB": (cpu_seconds(router.pid) - before) / (found["bytes"] / 1e9)}

    sides = {"ours": partial(once, "ours"), "peer": partial(once, "peer")}
    if not down:
        sides["control"] = sides["peer"]
    found = alternate(f"relay {case}", bench.runs, sides)
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["Mbit/s"], found["s/GB"]
    bench.row(f"throughput {case}", rates["ours"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)
    bench.row(f"cpu {case}", costs["ours"], costs["peer"], unit="CPU s/GB", less=True, commands=shown, **ROW)
    if not down:
        bench.row(control, rates["control"], rates["peer"], unit="Mbit/s", commands=shown, **ROW)


def rate(bench: Bench, made: Rig) -> None:
    if not bench.wants("connections tcp gso-on", "cpu connection tcp"):
        return
    commands = {name: wrk(made[name].target, SECONDS) for name in ("ours", "peer")}

    def once(router: Router) -> Sample:
        made.forget()
        before = cpu_seconds(router.pid)
        found = connections(made.client, commands[router.name], SECONDS)
        router.alive()
        return {**found, "cpu": (cpu_seconds(router.pid) - before) / (found["conn/s"] * SECONDS) * 1e6}

    found = alternate("relay connections", bench.runs, {name: partial(once, made[name]) for name in commands})
    shown = [" ".join(command) for command in commands.values()]
    rates, costs = found["conn/s"], found["cpu"]
    bench.row("connections tcp gso-on", rates["ours"], rates["peer"], unit="conn/s", commands=shown, **ROW)
    bench.row("cpu connection tcp", costs["ours"], costs["peer"], unit="us/conn", less=True, commands=shown, **ROW)


def latency(bench: Bench, made: Rig) -> None:
    """What the relay adds to a new connection and its first answer, one at a time, over a router that only forwards."""
    if not bench.wants("latency connect tcp added"):
        return
    commands = {name: wrk(made[name].target, 1, 1) for name in ("plain", "ours", "peer")}

    def once(name: str) -> Sample:
        return {"ms": connections(made.client, commands[name], 1)["p50"]}

    found = alternate("relay latency", bench.runs, {name: partial(once, name) for name in commands})["ms"]
    added = {
        name: [max(mine - base, 1e-3) for mine, base in zip(found[name], found["plain"], strict=True)]
        for name in ("ours", "peer")
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
    sides = {name: partial(fresh, made, name, once) for name in ("ours", "peer")}
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
