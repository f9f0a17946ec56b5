"""The systemd units: systemd itself finds nothing wrong with them, and their times agree with the gateway's own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from gateway.cli.run import REFUSED
from gateway.kernel import descriptors, watcher
from gateway.options import GatewayOptions
from gateway.service import notify
from tests import peers

DEBIAN = Path(__file__).resolve().parents[3] / "packaging/debian"
UNITS = ("gateway.service", "gateway@.service")
MOST = 4.0
"""Exposure that is left (0 to 10): routing asks for the capabilities, and for the host's network."""


def lines(name: str) -> list[str]:
    return [line for line in (DEBIAN / name).read_text().splitlines() if line and not line.startswith("#")]


def field(name: str, key: str) -> str:
    (found,) = (line.partition("=")[2] for line in lines(name) if line.startswith(f"{key}="))
    return found


def seconds(name: str, key: str) -> int:
    return int(field(name, key).removesuffix("s"))


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Beside a program that is there."""
    program = tmp_path / "gateway"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name in UNITS:
        (tmp_path / name).write_text((DEBIAN / name).read_text().replace("/usr/bin/gateway", str(program)))
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(peers.path("systemd-analyze")), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.peer("systemd-analyze")
@pytest.mark.parametrize("name", ["gateway.service", "gateway@guests.service"])
def test_systemd_takes_it(copies: Path, name: str) -> None:
    done = analyze("verify", "--man=no", "--recursive-errors=no", str(copies / name))
    assert done.returncode == 0, done.stderr
    assert str(copies) not in done.stderr


@pytest.mark.peer("systemd-analyze")
def test_what_systemd_finds_wrong_is_seen(copies: Path) -> None:
    unit = copies / "gateway.service"
    unit.write_text(unit.read_text().replace("Type=notify", "Type=notfy"))
    assert "notfy" in analyze("verify", "--man=no", str(unit)).stderr


@pytest.mark.peer("systemd-analyze")
@pytest.mark.parametrize("name", ["gateway.service", "gateway@.service"])
def test_it_is_closed_but_for_what_it_needs(copies: Path, name: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={int(MOST * 10)}", str(copies / name))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found
    assert 0 < float(found[1]) <= MOST


def test_an_instance_is_the_service_under_another_name() -> None:
    names = {
        "/etc/gateway/%i/*.json": "/etc/gateway/*.json", "-C /etc/gateway/%i": "-C /etc/gateway",
        "/var/lib/gateway/%i --instance %i": "/var/lib/gateway/main", "gateway/%i": "gateway/main",
        " --instance %i": "", ", instance %i": "",
    }  # fmt: skip
    text = (DEBIAN / "gateway@.service").read_text()
    for theirs, ours in names.items():
        text = text.replace(theirs, ours)
    assert text == (DEBIAN / "gateway.service").read_text()


@pytest.mark.parametrize("name", UNITS)
def test_its_times_agree_with_the_heartbeat(name: str) -> None:
    dog, heartbeat = seconds(name, "WatchdogSec"), GatewayOptions().heartbeat
    assert dog > heartbeat + 2 + watcher.ABORT, "the gateway's own child is first"
    assert dog >= notify.TIMES * heartbeat
    assert dog > 3 * notify.BEAT
    assert notify.PATIENCE > watcher.LONG + watcher.ABORT
    assert seconds(name, "TimeoutStartSec") > watcher.LONG
    assert seconds(name, "TimeoutAbortSec") > watcher.ABORT
    assert int(field(name, "LimitNOFILE")) >= descriptors.WANTED


@pytest.mark.parametrize("name", UNITS)
def test_what_stands_after_a_stop(name: str) -> None:
    """As docs/failure.md has it."""
    assert field(name, "KillMode") == "process"
    assert field(name, "RuntimeDirectoryPreserve") == "yes"
    assert field(name, "Restart") == "on-failure"
    assert field(name, "RestartPreventExitStatus") == str(REFUSED)
