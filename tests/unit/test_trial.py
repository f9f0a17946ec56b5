"""A trial: who may confirm it, and what its child does in earnest."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from gateway.kernel.login import Login
from gateway.kernel.rescue import Rescue
from gateway.trial import boottime, refusal

PARENT = """
import os, signal, sys, time
from pathlib import Path
from gateway.kernel.rescue import Rescue
from gateway.kernel.netlink.stood import boottime
folder = Path(sys.argv[1])
rescue = Rescue(boottime() + float(sys.argv[2]), folder, ["/bin/sh", "-c", f"rmdir {folder}"], folder)
print(rescue.pid, flush=True)
"""
CASES = {
    "killed": ("60", "os.kill(os.getpid(), signal.SIGKILL)", True),
    "ends": ("60", "", True),
    "confirmed": ("60", "rescue.dismiss()", False),
    "late": ("0.5", "time.sleep(60)", True),
}


def test_who_may_confirm() -> None:
    peer = ip_address("192.0.2.7")
    assert refusal(Login(1, 100.0, peer), 99.99) == ""
    assert refusal(Login(1, 100.0, peer), 100.0) == ""
    old = refusal(Login(1, 100.0, peer), 100.01)
    assert "192.0.2.7" in old
    assert "open a second connection and run `gateway confirm` there" in old
    none = refusal(None, 0.0)
    assert "--here" in none
    assert "tmux" in none
    assert "--here" not in old


@pytest.mark.parametrize("name", CASES)
def test_the_child_undoes_unless_it_is_told_not_to(tmp_path: Path, name: str) -> None:
    seconds, end, undone = CASES[name]
    folder = tmp_path / "trial"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + end, str(folder), seconds], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        until = time.monotonic() + 20
        while Path(f"/proc/{child}").exists() and time.monotonic() < until:
            time.sleep(0.02)
        assert not Path(f"/proc/{child}").exists()
        assert folder.exists() is not undone
    assert boottime() > 0


def test_the_child_undoes_nothing_where_nothing_is_left_to_undo(tmp_path: Path) -> None:
    """Somebody else has done it: the folder is gone."""
    told = tmp_path / "told"
    rescue = Rescue(boottime() + 60, tmp_path / "trial", ["/bin/sh", "-c", f"touch {told}"], tmp_path)
    rescue.dismiss()
    rescue.dismiss()
    assert not told.exists()
