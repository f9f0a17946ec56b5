"""``gateway demo``: a home network in namespaces, the gateway on its router, and what went where."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from typing import Any

from gateway.cli.lab import programs
from gateway.core.errors import GatewayError
from gateway.lab.checks import CHECKS, clean_stop
from gateway.lab.stage import CheckError, LabError, Stage

SABOTAGES = {
    "no-gateway": "the gateway is not started",
    "open-wan": "the firewall is left out",
    "no-bpf": "the process programs cannot be attached; userspace must look owners up",
    "all-direct": "no rule is left",
    "no-dns-capture": "the LAN's name queries pass",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    parser.add_argument("--seed", type=int, help="draw the same names and addresses again")
    parser.add_argument("--sabotage", choices=SABOTAGES, default="", help="break one thing, to see which checks notice")


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
        try:
            detail, ok = work(), True
        except (CheckError, LabError, KeyError, OSError, ValueError) as error:
            detail, ok = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error), False
        checks.append({"name": name, "ok": ok, "detail": detail})
        say(f"  {'ok' if ok else 'NO':3} {name}: {detail}")

    with stage.lab:
        try:
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
                    site.host: [site.ipv4, site.ipv6, *site.names] for site in (drawn.lan1, drawn.lan2, *drawn.sites)
                },
            }
        finally:
            stage.close()


def picture(report: dict[str, Any]) -> str:
    """The network and the checks, for a person."""
    hosts, wan = report["hosts"], report["lease"]["address"] or "no lease"
    lines = [
        "",
        f"  lan1 {hosts['lan1'][0]:15} ─┐                                           ┌─ site1 {hosts['site1'][0]}",
        f"                       ├─ [lan] router [wan {wan:13}] ── isp ─┼─ site2 {hosts['site2'][0]}",
        f"  lan2 {hosts['lan2'][0]:15} ─┘   masquerades IPv4, routes IPv6         └─ ...",
        "",
    ]
    width = max(len(check["name"]) for check in report["checks"])
    lines += [
        f"  {'✔' if check['ok'] else '✘'} {check['name']:{width}}  {check['detail']}" for check in report["checks"]
    ]
    good = sum(check["ok"] for check in report["checks"])
    lines += ["", f"  {good} of {len(report['checks'])} checks hold, {report['seconds']} s"]
    return "\n".join(lines)
