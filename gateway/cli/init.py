"""``gateway init``: looks at this host's ports and writes a configuration for them, with comments. Nothing else is
touched, and no file is overwritten without ``--force``. Needs no root.

On a terminal it asks for what the arguments leave open; elsewhere it takes what it proposes.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gateway import catalog
from gateway.cli import proposal
from gateway.cli.proposal import TOPOLOGIES, WAYS, Around, Proposal, Wish
from gateway.config.load import load, read
from gateway.config.merge import Source
from gateway.config.text import parse, split_path
from gateway.core.errors import ConfigError, GatewayError
from gateway.dns.server.local import RESOLV_CONF, read_servers
from gateway.kernel.probe.finding import parameter
from gateway.kernel.probe.neighbours import present
from gateway.kernel.probe.ruleset import read as read_rules
from gateway.uplink.inventory import Port, look

FILE = "gateway.json"
FIREWALLS = ("firewalld", "fw4", "ufw")
UNBUILT = "is not built yet"
MOST = 200
"""Things not built that are told of one file."""
STAND_INS = {
    "inbounds": {"type": "direct"}, "outbounds": {"type": "direct"}, "dns": {"type": "local"},
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--topology", choices=TOPOLOGIES, default="", help="what this host is to be (a guess)")
    parser.add_argument("--uplink", default="", metavar="PORT", help="the way out (where the default route leads)")
    parser.add_argument("--kind", choices=WAYS, default="", help="how the uplink gets its addresses (as it stands)")
    for words, metavar, text in (
        (("--lan",), "PORT", "a port of the LAN, repeatable: several become one bridge"),
        (("--lan-address",), "ADDRESS", "of this host in the LAN, with prefix length, repeatable (192.168.8.1/24)"),
        (
            ("--address",),
            "ADDRESS",
            "static: of this host on the uplink, with prefix length, repeatable (as it stands)",
        ),
        (("--gateway",), "ADDRESS", "static: the next hop, one of each family (as it stands)"),
        (("--dns",), "ADDRESS", "static: name servers, repeatable (as resolv.conf has them)"),
    ):
        parser.add_argument(*words, action="append", default=[], metavar=metavar, help=text)
    parser.add_argument("--from", dest="beside", default="", metavar="FILE", help="a sing-box file to stand beside")
    parser.add_argument("-o", "--output", default="", metavar="FILE", help=f'what to write; "-" prints it ({FILE})')
    parser.add_argument("--force", action="store_true", help="replace the file where it exists")
    parser.add_argument("--json", action="store_true", help="ports and proposal as one document; writes no file but -o")


def run(arguments: argparse.Namespace) -> int:
    """1 where the sing-box file cannot be run as it is; ours is written all the same."""
    beside = read([arguments.beside])[0] if arguments.beside else None
    ports, around = asyncio.run(look()), about(beside)
    wish = Wish(
        arguments.topology, arguments.uplink, arguments.kind, _split(arguments.lan), _split(arguments.lan_address),
        _split(arguments.address), _split(arguments.gateway), _split(arguments.dns),
    )  # fmt: skip
    output = arguments.output or ("" if arguments.json else FILE)
    refuse(output, arguments.force)
    if not arguments.json and sys.stdin.isatty() and sys.stderr.isatty():
        show(ports)
        wish = ask(ports, wish, around)
    chosen = proposal.propose(ports, wish, around)
    text = proposal.file(chosen, around).replace("THIS", shlex.quote(output if output not in ("", "-") else FILE))
    missing = [] if beside is None else unbuilt(beside)
    judge(text, None if missing else beside)
    write(output, text, arguments.force)
    if arguments.json:
        print(json.dumps(document(ports, around, chosen, text, output, missing), indent=1))
    else:
        told(chosen, output, arguments.beside, missing)
    return 1 if missing else 0


def _split(words: Sequence[str]) -> tuple[str, ...]:
    """Repeated, or with commas between."""
    return tuple(one.strip() for word in words for one in word.split(",") if one.strip())


def about(beside: Source | None) -> Around:
    """What beside the ports counts. Reads the firewall's tables where it may."""
    servers = tuple(str(ip) for ip in read_servers(RESOLV_CONF) if not ip.is_loopback)
    dns = {} if beside is None else beside.value.get("dns", {})
    return Around(
        forwarding=parameter("net/ipv4/ip_forward") == "1",
        firewall=_firewall(),
        dns=servers,
        beside="" if beside is None else beside.file,
        named=isinstance(dns, dict) and bool(dns.get("servers")),
    )


def _firewall() -> str:
    try:
        found = present(read_rules(), ())
    except (OSError, ValueError, LookupError, TypeError, GatewayError):
        return ""
    except Exception as error:  # a program that was refused
        if os.geteuid() == 0:
            raise GatewayError(f"the firewall's tables could not be read: {error}") from error
        return ""
    return next((name for name in FIREWALLS if name in found), "")


# -- the sing-box file


def unbuilt(source: Source) -> list[str]:
    """What keeps ``source`` from being run here, a line each: all that is not built yet, else the first error."""
    value, found = copy.deepcopy(source.value), list[str]()
    for _ in range(MOST):
        try:
            load([Source(source.file, source.text, value)], catalog)
            break
        except ConfigError as error:
            known = UNBUILT in error.message
            if known or not found:  # else it may come of what was taken out
                found.append(str(error))
            if not known or not _take_out(value, split_path(error.path)):
                break
    return found


def _take_out(value: Any, path: Sequence[str | int]) -> bool:
    """Put a stand-in there for an object of a type that is not built; of other things remove the key."""
    for step in path[:-1]:
        value, last = value[step], value
        if path[-1] == "type" and step == path[-2]:
            stand_in = STAND_INS.get(str(path[0]))
            if stand_in is None:
                return False
            last[step] = {**stand_in, **({"tag": value["tag"]} if "tag" in value else {})}
            return True
    if not isinstance(value, dict) or path[-1] not in value:
        return False
    del value[path[-1]]
    return True


def judge(text: str, beside: Source | None) -> None:
    """Raises ConfigError where ``gateway check`` would."""
    ours = Source(FILE, text, parse(text, FILE))
    load([ours] if beside is None else [beside, ours], catalog)


# -- a person


def show(ports: Sequence[Port]) -> None:
    for port in ports:
        about = [port.driver or port.kind, port.link, f"{port.speed} Mbit/s" if port.speed else "", *port.addresses]
        about += [f"default by {gateway}" for gateway in port.gateways[:2]]
        about += [f"port of {port.bridge}"] if port.bridge else []
        about += [f"configured by {port.owner}"] if port.owner else []
        print(f"  {port.name:15} {port.mac}  {', '.join(filter(None, about))}", file=sys.stderr)


def ask(ports: Sequence[Port], wish: Wish, around: Around) -> Wish:
    """Ask for what is open; an empty line takes what is proposed. Raises GatewayError at the end of input."""
    if not wish.topology:
        wish = replace(
            wish, topology=question(f"topology ({', '.join(TOPOLOGIES)})", proposal.topology_of(ports, around)[0])
        )
    uplink = proposal.uplink_of(ports)
    if not wish.uplink:
        wish = replace(wish, uplink=question("uplink", uplink.name if uplink else ""))
    if wish.topology in ("router", "steering") and not wish.lan:
        wish = replace(wish, lan=_split([question("LAN (several ports with commas)", _lan(ports, wish, around))]))
    if wish.topology == "router" and not wish.lan_address:
        (lan,) = proposal.propose(ports, wish, around).lans
        wish = replace(wish, lan_address=_split([question("address in the LAN", ",".join(lan["address"]))]))
    return wish


def _lan(ports: Sequence[Port], wish: Wish, around: Around) -> str:
    """What would be proposed; empty where a port has to be named that is not there yet."""
    try:
        lans = proposal.propose(ports, wish, around).lans
    except GatewayError:
        return ""
    return ",".join(port for lan in lans for port in lan.get("ports", [lan["interface"]]))


def question(what: str, proposed: str) -> str:
    print(f"{what} [{proposed}]: " if proposed else f"{what}: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise GatewayError("no answer")
    return line.strip() or proposed


def told(chosen: Proposal, output: str, beside: str, missing: Sequence[str]) -> None:
    for line in (*chosen.why, *(f"to do: {note}" for note in chosen.notes)):
        print(line, file=sys.stderr)
    for line in missing:
        print(f"{beside} cannot be run as it is: {line.removeprefix(f'{beside}:')}", file=sys.stderr)
    if output != "-":
        files = " ".join(f"-c {shlex.quote(one)}" for one in (beside, output) if one)
        print(f"wrote {output}", f"judge it: gateway check {files}", f"try it: sudo gateway run --trial {files}",
              sep="; ", file=sys.stderr)  # fmt: skip


def document(
    ports: Sequence[Port], around: Around, chosen: Proposal, text: str, output: str, missing: Sequence[str]
) -> dict[str, Any]:
    """``proposal.configuration`` is what ``proposal.text`` says."""
    return {
        "ports": [
            {
                "name": port.name, "index": port.index, "mac": port.mac, "kind": port.kind, "driver": port.driver,
                "link": port.link, "speed": port.speed, "mtu": port.mtu,
                "addresses": [{"address": one, "dynamic": one in port.dynamic} for one in port.addresses],
                "default_route": list(port.gateways), "bridge": port.bridge, "ports": list(port.ports),
                "owner": None if port.owner is None else port.owner._asdict(),
            }
            for port in ports
        ],
        "host": {key: value for key, value in asdict(around).items() if key not in ("beside", "named")},
        "proposal": {
            "topology": chosen.topology, "why": list(chosen.why), "notes": list(chosen.notes),
            "configuration": parse(text, FILE), "text": text, "file": output if output != "-" else "",
        },
        "from": {"file": around.beside, "problems": list(missing)} if around.beside else None,
    }  # fmt: skip


# -- the file


def refuse(output: str, force: bool) -> None:
    """Raises GatewayError where ``output`` would be overwritten."""
    if output not in ("", "-") and not force and os.path.lexists(output):
        raise GatewayError(f"{output} exists: --force replaces it, -o FILE writes another one")


def write(output: str, text: str, force: bool) -> None:
    """Whole or not at all. Raises GatewayError."""
    if not output:
        return
    if output == "-":
        sys.stdout.write(text)
        return
    path = Path(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        try:
            if force:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)  # refused where somebody was faster
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise GatewayError(f"{output}: {error.strerror}") from error
