"""The demo, run as a person runs it: everything holds, and each sabotage is noticed by the checks it should break."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.demo import SABOTAGES

ROOT = Path(__file__).resolve().parents[3]
PROXIED = {"proxied-by-domain", "proxied-udp", "quic-sniffed", "ipv6-proxied"}
OWN = {
    "proxied-by-process", "proxied-by-exact-path", "proxied-by-user", "proxied-by-group", "proxied-by-cgroup",
}  # fmt: skip
"""Of programs of the router: who is proxied, and that another one goes directly, by the kernel."""
DIRECT = {"direct-by-ip", "direct-by-domain", "direct-quic", "ipv6-direct", "quic-handed-back"}
BOTH = OWN | {"shared-address-conflict", "direct-by-mac", "urltest"}
"""Of one who is proxied and one who is direct."""
CARRIED = {"trojan", "vless"}
NAMES = {"dot", "doh"}
"""What the gateway says and asks in TLS."""
KERNEL = DIRECT | OWN | {"direct-by-mac", "urltest"}
"""Of flows that the kernel carries, or does at the end."""
PREDICTED = CARRIED | PROXIED | DIRECT | BOTH | {
    "blocked", "reload-keeps-flows", "foreign-marks-kept", "kill9-fails-open", "pause",
}  # fmt: skip
"""Checks of flows that the rules decide."""
EVERY = PREDICTED | NAMES | {
    "late-uplink", "lease", "dns-intercepted", "port-forward-kept", "hairpin-udp", "own-ssh-kept", "tun-lan-wide",
    "wan-closed", "fails-closed", "renew", "clean-stop", "one-arm", "second-dhcp-client-refused", "trial-rolls-back",
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
    assert not (found := broken(report)), json.dumps(found, indent=1)
    assert {check["name"] for check in report["checks"]} == EVERY
    assert {check["name"] for check in report["checks"] if check["prediction"]} == PREDICTED
    assert report["lease"]["address"].startswith("192.0.2.")


# What each breaks, and nothing else.
LARGE = {
    "no-gateway": EVERY,
    # SIGKILL: the UDP socket was to be proxied before. Handed back: nothing is sniffed.
    "all-direct": PROXIED
    | CARRIED
    | BOTH
    | {"blocked", "quic-handed-back", "foreign-marks-kept", "kill9-fails-open", "pause"},
    # The second router's flows, and those that were to outlive us, go through the proxy too.
    "all-proxied": DIRECT | CARRIED | BOTH | {"blocked", "foreign-marks-kept", "tun-lan-wide", "fails-closed"},
    # What the kernel cannot tell goes to userspace, which asks /proc: who is proxied still is, but no flow of the
    # router is the kernel's alone.
    "no-bpf": OWN,
    # Nor is any other: all of it is dialled by the router, and ends with its gateway. What is rejected is accepted
    # before it is reset.
    "kernel-off": KERNEL | {"blocked", "foreign-marks-kept", "tun-lan-wide", "fails-closed"},
    # Names that we did not resolve are not learned: their flows are sniffed in userspace.
    "no-dns-capture": NAMES | {"dns-intercepted", "direct-by-domain"},
}
SMALL = {
    "open-wan": {"wan-closed"},
    "private-mac": {"direct-by-mac"},
    "fails-open": {"fails-closed"},
    "no-arm": {"one-arm"},
    "one-member": {"urltest"},
    "confirmed": {"trial-rolls-back"},
    "tcp-forward": {"hairpin-udp"},
    # What is proxied loses the bit that leads it to userspace.
    "whole-marks": {"foreign-marks-kept"},
    "no-auto-route": {"tun-lan-wide"},
    "client-elsewhere": {"second-dhcp-client-refused"},
    "wrong-server-name": NAMES | CARRIED,
    "not-paused": {"pause"},
}
"""No two break the same, so that several can be made in one demo, and each be seen."""


def test_every_sabotage_is_tried() -> None:
    assert LARGE.keys() | SMALL.keys() == SABOTAGES.keys()
    assert sum(map(len, SMALL.values())) == len(set().union(*SMALL.values()))


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", LARGE)
def test_sabotage_is_noticed(sabotage: str) -> None:
    found = broken(demo("--sabotage", sabotage))
    assert set(found) == LARGE[sabotage], json.dumps(found, indent=1)


@pytest.mark.slow
@pytest.mark.parametrize("half", [0, 1])
def test_several_sabotages_are_noticed(half: int) -> None:
    names = [*SMALL][half::2]
    found = broken(demo(*(word for name in names for word in ("--sabotage", name))))
    assert set(found) == set().union(*(SMALL[name] for name in names)), json.dumps(found, indent=1)


@pytest.mark.soak
@pytest.mark.parametrize("sabotage", SMALL)
def test_sabotage_is_noticed_by_one_check(sabotage: str) -> None:
    found = broken(demo("--sabotage", sabotage))
    assert set(found) == SMALL[sabotage], json.dumps(found, indent=1)
