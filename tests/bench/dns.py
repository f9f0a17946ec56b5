"""Names from the cache: dnsperf on a LAN host asks its router for 1,000 names that it has asked before.

``captured``: port 53 of the LAN is redirected to the listener; by our own capture, and for sing-box by a redirect of
the same kind to a ``direct`` inbound with a ``hijack-dns`` rule. ``inbound``: that ``direct`` inbound is asked itself,
with the same file for both. Behind each stands one dnsmasq, asked once a name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from tests import peers
from tests.bench.load import dnsperf, queries
from tests.bench.measure import SING_BOX, Bench, Sample, alternate, cpu_seconds
from tests.bench.rig import DNS, Rig, Router, rig

NAMES = 1000
SECONDS = 2
INBOUND = 5300
REDIRECT = f"""
table inet capture {{
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        iifname "lan" meta l4proto {{ tcp, udp }} th dport {DNS} redirect to :{INBOUND}
    }}
}}
"""


def config(router: Router) -> dict[str, Any]:
    """The same for both."""
    return {
        "log": {"level": "warn"},
        "dns": {"servers": [{"type": "udp", "tag": "far", "server": router.target}]},
        "inbounds": [{"type": "direct", "tag": "dns", "listen": "0.0.0.0", "listen_port": INBOUND}],
        "outbounds": [{"type": "direct", "tag": "direct"}],
        "route": {"rules": [{"inbound": "dns", "action": "hijack-dns"}], "default_domain_resolver": "far"},
    }


def run(bench: Bench) -> None:
    with rig("ours", "peer") as made:
        serve(made)
        made.ours("ours", config(made["ours"]))
        made.sing_box("peer", config(made["peer"]), ready=[("udp", INBOUND)], nft=REDIRECT)
        names = made.lab.folder / "names"
        names.write_text("".join(f"host{number}.example A\n" for number in range(NAMES)))
        for mode, how, port in (("udp", "captured", DNS), ("udp", "inbound", INBOUND), ("tcp", "captured", DNS)):
            case = f"{mode} {how}"
            if bench.wants(*(f"{thing} {case}" for thing in ("queries", "latency", "cpu")), f"queries {case} control"):
                measure(bench, made, case, partial(dnsperf, names=str(names), seconds=SECONDS, mode=mode, port=port))


def serve(made: Rig) -> None:
    records = made.lab.folder / "records"
    records.write_text("".join(f"host-record=host{n}.example,203.0.113.{n % 250 + 1},3600\n" for n in range(NAMES)))
    command = [peers.path("dnsmasq"), "--keep-in-foreground", "--no-resolv", "--no-hosts", f"--conf-file={records}"]
    made.serve([*command, "--pid-file=", "--user=root", "--local=/example/"], [("udp", DNS), ("tcp", DNS)])


def measure(bench: Bench, made: Rig, case: str, command: Any) -> None:
    for router in made.routers.values():  # fill the caches
        queries(made.client, command(router.lan), SECONDS)
    sides = {
        side: partial(once, made, made[name], command(made[name].lan))
        for side, name in (("ours", "ours"), ("peer", "peer"), ("control", "peer"))
        if side != "control" or case == "udp captured"
    }
    found = alternate(f"dns {case}", bench.runs, sides)
    row = partial(bench.row, peer_name=SING_BOX, commands=[" ".join(command(made[name].lan)) for name in made.routers])
    for thing, unit, less in (("queries", "queries/s", False), ("latency", "ms", True), ("cpu", "us/query", True)):
        row(f"{thing} {case}", found[thing]["ours"], found[thing]["peer"], unit=unit, less=less)
    if "control" in sides:
        row(f"queries {case} control", found["queries"]["control"], found["queries"]["peer"], unit="queries/s")


def once(made: Rig, router: Router, command: list[str]) -> Sample:
    before = cpu_seconds(router.pid)
    found = dict(queries(made.client, command, SECONDS))
    found["cpu"] = (cpu_seconds(router.pid) - before) / max(found.pop("done"), 1) * 1e6
    router.alive()
    return found
