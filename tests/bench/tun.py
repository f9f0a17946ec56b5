"""A LAN behind a tun inbound, flows that userspace carries (sniffed, then direct): ours beside sing-box's tun with its
stack ``system``; with auto_route alone, and with auto_redirect too.

Bulk is iperf3 with two streams, connections are wrk's with ``Connection: close``. CPU is that of the relaying process,
user and system.
"""

from __future__ import annotations

from typing import Any

from tests.bench.carried import check, rate, throughput
from tests.bench.measure import Bench
from tests.bench.rig import Rig, rig
from tests.bench.rules import BY_NAME, OUTBOUNDS

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
        throughput(bench, made, "tun", f"tcp {direction} {word}", direction == "down")
    rate(bench, made, "tun", f"connections tcp {word}", f"cpu connection tcp {word}")


def cases(word: str) -> list[str]:
    bulky = [f"{what} tcp {direction} {word}" for what in ("throughput", "cpu") for direction in ("up", "down")]
    return [*bulky, f"throughput tcp up {word} control", f"connections tcp {word}", f"cpu connection tcp {word}"]
