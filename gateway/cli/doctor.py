"""``gateway doctor``: what this host can do for the gateway, and how to mend what it cannot. Changes nothing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from gateway.kernel.probe import Finding, probe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document")


def run(arguments: argparse.Namespace) -> int:
    """0 where all that the gateway cannot do without is there."""
    findings = probe()
    ok = all(finding.ok for finding in findings if finding.needed)
    if arguments.json:
        print(json.dumps({"ok": ok, "findings": [asdict(finding) for finding in findings]}, indent=1))
        return 0 if ok else 1
    for finding in findings:
        print(line(finding))
    missing = sum(finding.needed and not finding.ok for finding in findings)
    print("all that is needed is here" if ok else f"{missing} needed and missing")
    return 0 if ok else 1


def line(finding: Finding) -> str:
    """A finding in one line, the remedy behind an arrow."""
    state = "ok" if finding.ok else "missing" if finding.needed else "without"
    remedy = f" -> {finding.remedy}" if finding.remedy and not finding.ok else ""
    return f"{state:<8} {finding.name}{': ' if finding.detail else ''}{finding.detail}{remedy}"
