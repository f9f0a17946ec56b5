"""The demo, run as a person runs it: everything holds, and each sabotage is noticed by the checks it should break."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROXIED = {
    "proxied-by-domain", "shared-address-conflict", "proxied-by-process", "proxied-by-user", "proxied-udp",
    "quic-sniffed", "ipv6-proxied",
}  # fmt: skip
DIRECT = {"direct-by-ip", "direct-by-domain", "direct-quic", "ipv6-direct"}
PREDICTED = PROXIED | DIRECT | {"blocked", "reload-keeps-flows", "kill9-fails-open"}
"""Checks of flows that the rules decide."""
EVERY = PREDICTED | {
    "late-uplink", "lease", "dns-intercepted", "port-forward-kept", "own-ssh-kept", "wan-closed", "renew", "clean-stop",
}  # fmt: skip

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("demo")]


def demo(*words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "gateway", "demo", "--json", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["ok"] else 1)
    return report


def broken(report: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}


def test_everything_holds() -> None:
    report = demo()
    assert broken(report) == {}
    assert {check["name"] for check in report["checks"]} == EVERY
    assert {check["name"] for check in report["checks"] if check["prediction"]} == PREDICTED
    assert report["lease"]["address"].startswith("192.0.2.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "breaks"),
    [
        ("no-gateway", EVERY),
        ("open-wan", {"wan-closed"}),
        # SIGKILL: the UDP socket was to be proxied before.
        ("all-direct", PROXIED | {"blocked", "kill9-fails-open"}),
        # Of process and user it is shown that another's flow goes directly.
        ("all-proxied", DIRECT | {"blocked", "shared-address-conflict", "proxied-by-process", "proxied-by-user"}),
        # What the kernel cannot tell goes to userspace, which asks /proc: who is proxied still is, but no flow of the
        # router is the kernel's alone.
        ("no-bpf", {"proxied-by-process", "proxied-by-user"}),
        # Names that we did not resolve are not learned: their flows are sniffed in userspace.
        ("no-dns-capture", {"dns-intercepted", "direct-by-domain"}),
    ],
)
def test_sabotage_is_noticed(sabotage: str, breaks: set[str]) -> None:
    found = broken(demo("--sabotage", sabotage))
    assert set(found) == breaks, found
