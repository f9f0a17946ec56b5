"""``gateway lab``: a home network in namespaces for a person to play in."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shutil
import sys
from pathlib import Path

from gateway.core.errors import GatewayError
from gateway.lab import peer, state
from gateway.lab.host import PATHS
from gateway.lab.lab import Lab, attach
from gateway.lab.process import ENTER
from gateway.lab.scenario import home, services
from gateway.lab.topology import Host, Topology

NAME = "lab"
HELP = "a home network in network namespaces: up, list, exec, down"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    up = actions.add_parser("up", help="make a lab and leave it standing")
    up.add_argument("scenario", choices=["home"])
    up.add_argument("--seed", type=int, help="draw the same names and addresses again")
    up.add_argument(
        "--no-proxy", action="store_true", help="without servers that must be fetched: proxies, encrypted names"
    )
    up.add_argument("--json", action="store_true", help="print the plan as one JSON document")
    down = actions.add_parser("down", help="take down one lab, or all that are there")
    down.add_argument("id", nargs="?")
    actions.add_parser("list", help="labs that are there")
    run = actions.add_parser("exec", help="run a command on a host of a lab")
    run.add_argument("id")
    run.add_argument("host")
    run.add_argument("words", metavar="command", nargs=argparse.REMAINDER, help="default: a shell")


def run(args: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        print("gateway lab: needs root", file=sys.stderr)
        return 1
    try:
        return {"up": up, "down": down, "list": show, "exec": execute}[args.action](args)
    except GatewayError as error:
        print(f"gateway lab: {error}", file=sys.stderr)
        return 1


def programs(proxy: bool = True) -> dict[str, str]:
    """The executables that the scenario needs; servers of proxies and of encrypted names are fetched on first use."""
    found = {"python": sys.executable, "dnsmasq": shutil.which("dnsmasq", path=PATHS) or str(peer.path("dnsmasq"))}
    if proxy:
        found |= {name: str(peer.path(name)) for name in ("ss-server", "xray", "unbound")}
    return found


def up(args: argparse.Namespace) -> int:
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    drawn = home.draw(random.Random(seed))
    lab = Lab(home.topology(drawn, programs(not args.no_proxy), datetime.datetime.now(datetime.UTC)), standing=True)
    with lab:
        lab.state.plan = {"seed": seed}
        lab.state.write()
        name, hosts = lab.id, dict(lab.state.namespaces)
        folder = lab.folder
    if args.json:
        plan = {"id": name, "seed": seed, "folder": str(folder), "namespaces": hosts, "records": dict(drawn.records)}
        print(json.dumps(plan, indent=1))
    else:
        print(describe(name, seed, folder, drawn))
    return 0


def describe(name: str, seed: int, folder: Path, drawn: home.Home) -> str:
    """What a person needs to know to use the lab."""
    rows = [f"  {site.host:9} {site.ipv4:15} {site.ipv6:22} {' '.join(site.names)}" for site in drawn.sites]
    others = [f"  {site.host:9} {site.ipv4:15} {site.ipv6}" for site in (*drawn.inside, drawn.resolver, drawn.vps)]
    return "\n".join(
        [
            f"lab {name} is up (seed {seed}); its files are in {folder}",
            "",
            "  lan1 ──┐",
            "  lan2 ──┼─ [lan] router [wan] ── isp ── site1 ... resolver, vps",
            "  lan3 ──┤",
            "  inner ─┘  the router of guest",
            "",
            *rows,
            *others,
            "",
            f"  router: interface wan takes DHCP, IPv6 {drawn.router_wan6}/64 via {drawn.isp6};",
            f"          interface lan wants {drawn.router_lan4}/24 and {drawn.router_lan6}/64",
            f"  vps:    {services.SHADOWSOCKS_METHOD} on {services.SHADOWSOCKS_PORT}, password "
            f"{drawn.shadowsocks_password}",
            f"          {services.SHADOWSOCKS_2022_METHOD} on {services.SHADOWSOCKS_2022_PORT}, password "
            f"{drawn.shadowsocks_2022_password}",
            f"          in TLS, certificates of {folder}/shared/ca.pem: trojan on {services.TROJAN_PORT}, password "
            f"{drawn.trojan_password}",
            f"          vless on {services.VLESS_PORT}, {drawn.vless_uuid}",
            f"  cgroup of the router, for gateway.kernel.cgroup: {state.load(name).group}/router",
            "",
            f"  gateway lab exec {name} router gateway run -c config.json",
            f"  gateway lab exec {name} lan1 curl http://{drawn.sites[0].names[0]}/",
            f"  gateway lab exec {name} lan1          a shell there",
            f"  what the sites saw: {folder}/shared/seen-*.jsonl",
            f"  gateway lab down {name}",
        ]
    )  # fmt: skip


def down(args: argparse.Namespace) -> int:
    state.sweep()
    chosen = [state.load(args.id)] if args.id else [lab for lab in state.every() if lab.owner == 0]
    for lab in chosen:
        state.remove(lab)
        print(f"lab {lab.id} is gone")
    if not chosen:
        print("no lab is standing")
    return 0


def show(args: argparse.Namespace) -> int:
    for lab in state.every():
        owner = "standing" if lab.owner == 0 else "abandoned" if lab.abandoned else f"of process {lab.owner}"
        print(f"{lab.id}  {lab.topology}  {owner}  {' '.join(lab.namespaces)}")
    return 0


def execute(args: argparse.Namespace) -> int:
    found = state.load(args.id)
    lab = attach(args.id, Topology(found.topology, tuple(Host(name) for name in found.namespaces)))
    host = lab.host(args.host)
    group = host.group / f"exec-{os.getpid()}"
    group.mkdir()
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    words = words or [os.environ.get("SHELL", "/bin/sh")]
    host.place.enter()  # this process ends as the command: moving its only thread is moving it
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{PATHS}"}
    os.execve("/bin/sh", ["sh", "-c", ENTER.replace("$0", str(group)), "sh", *words], environment)
