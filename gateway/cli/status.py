"""``gateway status``: what the running gateway says of itself."""

from __future__ import annotations

import argparse
import json

from gateway.cli import instance
from gateway.core.errors import GatewayError
from gateway.service.control import ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    instance.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    folder, _ = instance.folders(arguments)
    answer = ask(folder, {"command": "status"})
    if not answer.pop("ok", False):
        raise GatewayError(answer.get("error", "refused"))
    if arguments.json:
        print(json.dumps(answer))
        return 0
    print(f"{answer['state']}, up {answer['uptime']:.0f} s")
    print(f"inbounds {' '.join(answer['inbounds']) or 'none'}; {answer['flows']} flows")
    for one in answer.get("uplinks", ()):
        state = "elected" if one["elected"] else "ready" if one["ready"] else one["problem"] or "waiting"
        addresses, servers = (" ".join(one[key]) or "none" for key in ("addresses", "dns"))
        print(f"uplink {one['interface']}: {state}; addresses {addresses}; name servers {servers}")
    for name in answer.get("lans", ()):
        print(f"lan {name}: {answer['problems'].get(name, 'serves')}")
    if "steering" in answer:
        print(f"steering: {'the kernel steers' if answer['steering'] else 'none, every flow of the LAN is direct'}")
    if "offload" in answer:
        waiting = " (no bulk just now)" if answer["offload"] and not answer["offloading"] else ""
        print(f"offload: {' '.join(answer['offload']) or 'none'}{waiting}{_reason(answer['problems'].get('offload'))}")
    for name, table in answer.get("names", {}).items():
        forgotten = f"; {table['evicted']} forgotten or refused at the bound" if table["evicted"] else ""
        if table["now"] or forgotten:
            print(f"names: {name} {table['now']} of {table['most']}{forgotten}")
    for what, why in answer.get("refused", {}).items():
        print(f"{what}: {why}")
    if problem := answer.get("problems", {}).get("dnsmasq"):
        print(f"dnsmasq: {problem}")
    return 0


def _reason(problem: str | None) -> str:
    return f"; {problem}" if problem else ""
