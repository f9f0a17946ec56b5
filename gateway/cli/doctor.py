"""``gateway doctor``: what this host can do for the gateway, and how to mend what it cannot. Changes nothing.

While a gateway runs here its LANs are listened to as well, for a few seconds: who else plays the router there, and
which clients ask others for names. ``--repair`` undoes instead what gateways left that are dead: as ``down``, for every
instance that does not run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.box import RUN
from gateway.core.errors import GatewayError
from gateway.host import down
from gateway.kernel import journal
from gateway.kernel.probe import Finding, probe
from gateway.kernel.probe.ruleset import standing
from gateway.service.claim import Claimed
from gateway.service.control import alive, ask, listener
from gateway.trial import finish
from gateway.uplink import owner, watch

ANSWER = 3.0
"""Seconds in which a gateway that does its work says so."""
LONGEST = 3600
"""Seconds that may be listened."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument(
        "--listen", type=_seconds, default=watch.LISTENING, metavar="SECONDS",
        help="how long to listen on the LANs of a gateway that runs (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--repair", action="store_true", help="undo what dead gateways left on this host, every instance"
    )


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= LONGEST:
        raise argparse.ArgumentTypeError(f"seconds are 0 to {LONGEST}, not {text}")
    return seconds


def run(arguments: argparse.Namespace) -> int:
    """0 where all that the gateway cannot do without is there; with ``--repair`` where nothing is left."""
    if arguments.repair:
        return repair(RUN, arguments.json)
    findings = (*probe(), *instances(RUN), *link_findings(RUN), *lan_findings(RUN, arguments.listen))
    ok = all(finding.ok for finding in findings if finding.needed)
    if arguments.json:
        print(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if ok else 1
    for finding in findings:
        print(line(finding))
    missing = sum(finding.needed and not finding.ok for finding in findings)
    print("all that is needed is here" if ok else f"{missing} needed and missing")
    return 0 if ok else 1


def link_findings(run: Path) -> Iterator[Finding]:
    """Uplinks of the gateways that run in this network namespace which another program keeps from them. Never
    raises."""
    try:
        for folder in sorted(run.iterdir()) if run.is_dir() else ():
            kept = {one["interface"]: one["problem"] for one in _status(folder).get("uplinks", ()) if one["owner"]}
            found = owner.every({name: index for index, name in socket.if_nameindex() if name in kept})
            for name, problem in kept.items():
                yield Finding(f"uplink {name}", False, problem, found[name].release if name in found else "", False)
    except (OSError, GatewayError, ValueError) as error:
        yield Finding("uplinks", False, f"could not be looked at: {error}", _as_root(error), needed=False)


def lan_findings(run: Path, seconds: float) -> tuple[Finding, ...]:
    """Of the LANs of the gateways that run in this network namespace. Never raises, as ``probe``."""
    try:
        folders = sorted(run.iterdir()) if run.is_dir() else ()
        lans = [name for folder in folders for name in _status(folder).get("lans", ())]
        return tuple(watch.look(lans, seconds)) if lans else ()
    except (OSError, GatewayError, ValueError, subprocess.SubprocessError) as error:
        return (Finding("lans", False, f"could not be looked at: {error}", needed=False),)


def _status(folder: Path) -> dict[str, Any]:
    """What a gateway that runs in this network namespace says of itself; empty for any other. Raises GatewayError."""
    if not alive(folder / "control.sock") or journal.place(folder / "undo.jsonl") != "here":
        return {}
    return ask(folder, {"command": "status"}, ANSWER)


def instances(run: Path) -> Iterator[Finding]:
    """Gateways of this network namespace: those that run, those that hang, and what stands of those that are gone.
    Never raises."""
    try:
        yield from _instances(run)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        yield Finding("instances", False, f"could not be looked at: {error}", _as_root(error), needed=False)


def _as_root(error: Exception) -> str:
    return "run as root" if isinstance(error, PermissionError) or os.geteuid() else ""


def _instances(run: Path) -> Iterator[Finding]:
    folders = sorted(run.iterdir()) if run.is_dir() else ()
    here = [folder for folder in folders if journal.place(folder / "undo.jsonl") == "here"]
    for folder in here:
        name, remedy = f"instance {folder.name}", f"gateway down --instance {folder.name}"
        process = listener(folder / "control.sock")
        if process < 0:
            kinds = Counter(str(step["kind"]) for step in journal.read(folder / "undo.jsonl"))
            stands = ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "its journal"
            yield Finding(name, False, f"does not run; of it stands: {stands}", remedy, needed=False)
            continue
        answers = True
        try:
            ask(folder, {"command": "status"}, ANSWER)
        except GatewayError:
            answers = False
        detail = f"process {process} {'runs' if answers else f'hangs: no answer for {ANSWER:.0f} s'}"
        yield Finding(name, answers, detail, "" if answers else remedy, needed=False)
    if not here and (tables := standing()):
        remedy = "; ".join(f"nft delete table {table}" for table in tables)
        yield Finding(
            "leftover", False, f"of a gateway whose journal is gone: {', '.join(tables)}", remedy, needed=False
        )


def repair(run: Path, as_json: bool = False) -> int:
    """Undo what the dead instances in ``run`` left; those that run, or belong to another network namespace, are let
    be. 1 where something could not be undone. Raises GatewayError where it may not read of them."""
    done: dict[str, str] = {}
    failed: list[str] = []
    for folder in sorted(run.iterdir()) if run.is_dir() else ():
        if alive(folder / "control.sock"):
            done[folder.name] = "runs: let be"
            continue
        if not (folder / "undo.jsonl").exists():
            continue
        try:
            where = journal.place(folder / "undo.jsonl")
        except PermissionError as error:
            raise GatewayError(f"{error}: run as root") from None
        if where == "elsewhere":
            done[folder.name] = "of another network namespace: let be"
        elif where == "gone":
            shutil.rmtree(folder, ignore_errors=True)
            done[folder.name] = "of an earlier boot: forgotten"
        else:
            try:
                left = asyncio.run(down(folder, finish))
            except Claimed:
                done[folder.name] = "runs: let be"
                continue
            failed += [f"{folder.name}: {step}" for step in left]
            done[folder.name] = f"{len(left)} steps could not be undone" if left else "undone"
    if as_json:
        print(json.dumps({"ok": not failed, "instances": done, "failed": failed}))
        return 1 if failed else 0
    for name, what in done.items():
        print(f"{name}: {what}")
    if not done:
        print("nothing is left of any gateway")
    for step in failed:
        print(f"not undone: {step}", file=sys.stderr)
    return 1 if failed else 0


def line(finding: Finding) -> str:
    """A finding in one line, the remedy behind an arrow."""
    state = "ok" if finding.ok else "missing" if finding.needed else "without"
    remedy = f" -> {finding.remedy}" if finding.remedy and not finding.ok else ""
    return f"{state:<8} {finding.name}{': ' if finding.detail else ''}{finding.detail}{remedy}"
