"""``gateway status``: what the running gateway says of itself."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any

from gateway.cli import groups, instance
from gateway.cli.flows import size
from gateway.config.fields import Duration, format_duration
from gateway.kernel.probe import conflicts
from gateway.kernel.probe.limits import FULL, REMEDY
from gateway.route.explain import line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    answer = instance.ask(arguments, {"command": "status"})
    hindered = [finding for finding in conflicts() if not finding.ok and finding.needed] if "steering" in answer else []
    if arguments.json:
        print(json.dumps({**answer, "conflicts": [asdict(finding) for finding in hindered]}))
        return 0
    print(f"{answer['state']}, up {answer['uptime']:.0f} s")
    if "trial" in answer:
        print(f"on trial: undone in {answer['trial']:.0f} s, unless gateway confirm comes from a new connection")
    files = answer["files"]
    if files["open"] > FULL * files["limit"]:
        print(f"{files['open']} of {files['limit']} files are open: {REMEDY}")
    print(f"inbounds {' '.join(answer['inbounds']) or 'none'}; {answer['flows']} flows")
    if problem := answer.get("store"):
        print(f"nothing is stored: {problem}")
    for one in answer.get("groups", ()):
        print(groups.line(one))
    for one in answer.get("rule_sets", ()):
        print(f"rule set {one['tag']}: {copy(one)}")
    for one in answer["classes"]:
        if one["flows"]:
            packets = f", {one['packets']} packets" if one["packets"] else ""
            print(f"{one['name']}: {one['flows']} flows, {size(one['bytes'])}{packets}")
    for one in answer.get("uplinks", ()):
        state = "elected" if one["elected"] else "ready" if one["ready"] else one["problem"] or "waiting"
        addresses, servers = (" ".join(one[key]) or "none" for key in ("addresses", "dns"))
        print(f"uplink {one['interface']}: {state}; addresses {addresses}; name servers {servers}")
    for name in answer.get("lans", ()):
        print(f"lan {name}: {answer['problems'].get(name, 'serves')}")
    if "steering" in answer:
        print(f"steering: {'the kernel steers' if answer['steering'] else 'none, every flow of the LAN is direct'}")
    for one in answer.get("paused", ()):
        print(f"paused, so direct: {paused(one)}")
    if rules := answer.get("skipped"):
        print(f"mode {answer['mode']} skips, where an address rule decides and the name is not known:")
        for rule in rules:
            print(f"  {line(rule)}")
    if "offload" in answer:
        waiting = " (no bulk just now)" if answer["offload"] and not answer["offloading"] else ""
        print(f"offload: {' '.join(answer['offload']) or 'none'}{waiting}{_reason(answer['problems'].get('offload'))}")
    if restored := answer.get("restored"):
        print(f"restored {restored} times what other programs took away: table gateway_base, or the ip rule")
    if problem := answer.get("problems", {}).get("standing"):
        print(f"cannot be put back: {problem}")
    for name, table in answer.get("names", {}).items():
        forgotten = f"; {table['evicted']} forgotten or refused at the bound" if table["evicted"] else ""
        if table["now"] or forgotten:
            print(f"names: {name} {table['now']} of {table['most']}{forgotten}")
    for what, why in answer.get("refused", {}).items():
        print(f"{what}: {why}")
    if problem := answer.get("problems", {}).get("dnsmasq"):
        print(f"dnsmasq: {problem}")
    for finding in hindered:
        print(f"{finding.name}: {finding.detail}{f' -> {finding.remedy}' if finding.remedy else ''}")
    return 0


def copy(one: dict[str, Any]) -> str:
    """What there is of a remote rule set, for a person."""
    after = (
        f"asked for now, {size(one['received'])} so far" if one["next"] is None else f"asked for in {span(one['next'])}"
    )
    have = "no copy yet, it matches nothing" if one["size"] is None else f"{size(one['size'])}, {span(one['age'])} old"
    return f"{have}; {after}{_reason(one['error'])}"


def span(seconds: float) -> str:
    """Of time, roughly."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def paused(one: dict[str, Any]) -> str:
    """A pause, for a person."""
    device = f"{one['name']} ({one['device']})" if one["name"] else one["device"] or "everything"
    left = "until gateway resume" if one["left"] is None else f"{format_duration(Duration(round(one['left'])))} left"
    return f"{device}, {left}"


def _reason(problem: str | None) -> str:
    return f"; {problem}" if problem else ""
