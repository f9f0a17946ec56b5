"""``gateway demo``: a home network in namespaces, the gateway on its router, and what went where."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import textwrap
import time
from typing import Any

from gateway.cli.lab import programs
from gateway.core.errors import GatewayError
from gateway.lab.checks import CHECKS
from gateway.lab.faults import clean_stop
from gateway.lab.forecast import CheckError
from gateway.lab.stage import LabError, Stage

SABOTAGES = {
    "no-gateway": "the gateway is not started",
    "open-wan": "the firewall is left out",
    "no-bpf": "the process programs cannot be attached; userspace must look owners up",
    "kernel-off": "the kernel decides nothing, all goes through userspace",
    "private-mac": "a device has another hardware address than the rule",
    "tcp-forward": "the port of a UDP service is forwarded for TCP",
    "fails-open": "`fail` is `open` all the time",
    "whole-marks": "a neighbour overwrites the whole mark of packets",
    "no-arm": "the side router's port is no LAN",
    "client-elsewhere": "the other DHCP client runs on another host",
    "no-auto-route": "the tun inbound of the second router has no routes",
    "all-direct": "no rule is left",
    "all-proxied": "no rule is left, and what is left goes through the proxy",
    "one-member": "the group of outbounds has no member but the one that dies",
    "no-dns-capture": "the LAN's name queries pass",
    "wrong-server-name": "servers in TLS are asked for under a name that they do not have",
    "confirmed": "somebody at the machine confirms a trial that has locked others out",
    "not-paused": "what should be paused is not",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seed", type=int, help="draw the same names and addresses again")
    cases = "; ".join(f"{name}: {what}" for name, what in SABOTAGES.items())
    told = f"break one thing, to see which checks notice; several times: each. {cases}"
    parser.add_argument("--sabotage", action="append", choices=SABOTAGES, metavar="CASE", default=[], help=told)


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise GatewayError("needs root: it makes network namespaces")
    begun = time.monotonic()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    say(f"a home network, drawn with seed {seed}")
    report = play(Stage(programs(), seed, arguments.sabotage))
    report = {
        "ok": all(check["ok"] for check in report["checks"]),
        "seconds": round(time.monotonic() - begun, 1),
        **report,
    }
    print(json.dumps(report) if arguments.json else picture(report))
    return 0 if report["ok"] else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def play(stage: Stage) -> dict[str, Any]:
    """Run every check on ``stage``. Takes the lab down whatever happens."""
    checks: list[dict[str, Any]] = []

    def note(name: str, work: Any) -> None:
        stage.forecasts.clear()
        try:
            detail, ok = work(), True
        except (CheckError, LabError, LookupError, OSError, ValueError) as error:
            detail, ok = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else str(error), False
        prediction = ", ".join(dict.fromkeys(map(str, stage.forecasts))) or None
        checks.append({"name": name, "ok": ok, "detail": detail, "prediction": prediction})
        say(f"  {'ok' if ok else 'NO':3} {name}: {detail}")

    with stage.lab:
        stage.plug()
        before = stage.settled()
        stage.unplug()
        stage.start()
        for name, check in CHECKS.items():
            note(name, lambda check=check: check(stage))
        note("clean-stop", lambda: clean_stop(stage, before))
        drawn = stage.home
        return {
            "lease": {"address": stage.wan4, "server": drawn.isp4, "mac": drawn.wan_mac},
            "checks": checks,
            "hosts": {
                site.host: [site.ipv4, site.ipv6, *site.names] for site in (*drawn.inside, *drawn.sites, drawn.vps)
            },
        }


def picture(report: dict[str, Any]) -> str:
    """The network and the checks, for a person; 100 columns."""
    good = sum(check["ok"] for check in report["checks"])
    total = f"  {good} of {len(report['checks'])} checks hold, {report['seconds']} s"
    return "\n".join(["", *network(report), "", *table(report["checks"]), "", total])


WAYS = {
    "site1": "direct, by address",
    "site2": "direct, by name",
    "site3": "proxied, by name",
    "site4": "proxied, UDP and QUIC",
    "site5": "refused",
    "site6": "two names: one of each",
}


def network(report: dict[str, Any]) -> list[str]:
    hosts, wan = report["hosts"], report["lease"]["address"] or "no lease"
    left = [""] * 7
    left[1] = f"lan1  {hosts['lan1'][0]:14} ─┐"
    left[2] = f"lan2  {hosts['lan2'][0]:14} ─┤"
    left[3] = " " * 22 + f"├─ router {wan} ── isp ─"
    left[4] = f"lan3  {hosts['lan3'][0]:14} ─┤  IPv4 masqueraded"
    left[5] = f"inner {hosts['inner'][0]:14} ─┘  IPv6 routed"
    left[6] = f"  └─ guest {hosts['guest'][0]}"
    right = [f"{name} {hosts[name][0]:15} {way}" for name, way in WAYS.items()]
    right.append(f"vps   {hosts['vps'][0]:15} the proxy server")
    last = len(right) - 1
    lines = []
    for number, (near, far) in enumerate(zip(left, right, strict=True)):
        if number == 3:
            lines.append(f"  {near:─<52}┼─ {far}")
        else:
            lines.append(f"  {near:52}{'┌' if number == 0 else '└' if number == last else '├'}─ {far}")
    return lines


def table(checks: list[dict[str, Any]]) -> list[str]:
    """What was seen, and below it what ``explain`` had said."""
    width = max(len(check["name"]) for check in checks)
    lines = []
    for check in checks:
        rows = textwrap.wrap(check["detail"], 100 - 6 - width) or [""]
        if check["prediction"]:
            rows += textwrap.wrap(f"predicted: {check['prediction']}", 100 - 6 - width, subsequent_indent="  ")
        mark = "✔" if check["ok"] else "✘"
        lines += [f"  {mark} {check['name']:{width}}  {rows[0]}", *(" " * (width + 6) + row for row in rows[1:])]
    return lines
