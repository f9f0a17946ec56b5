"""Starts that cannot be: one clear line, and the host is as it was. And stops at any moment of a start or a reload."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.snapshot import differences
from gateway.service.control import alive

from .conftest import DIRECT, KERNEL, PROXIED, ROOT, USERSPACE, Whole, keepers, until
from .test_nothing_left import settled

pytestmark = [pytest.mark.root, pytest.mark.slow]


def refusal(whole: Whole, instance: str, path: Path, program: tuple[str, ...] = ()) -> str:
    """The one line in which a gateway says why it does not start."""
    words = [*(program or whole.program), "run", "-c", str(path), "--instance", instance]
    done = whole.gateway.run(words, cwd=ROOT, timeout=60)
    assert done.code == 1, done.err
    others = ("INFO ", "WARNING ", "Operation not permitted (you must be root)")  # the last are libnftables' words
    lines = [line for line in done.err.splitlines() if not line.startswith(others)]
    assert len(lines) == 1, done.err
    assert lines[0].startswith("gateway run: ")
    return lines[0].removeprefix("gateway run: ")


def steered(whole: Whole) -> None:
    assert whole.ask("tcp", whole.client, DIRECT[0]) == KERNEL[0]
    assert whole.ask("tcp", whole.client, PROXIED[0]) == USERSPACE[0]


def test_there_is_one_of_an_instance(whole: Whole) -> None:
    before = settled(whole)
    whole.start("open")
    journal = (whole.folder / "undo.jsonl").read_bytes()
    inode = (whole.folder / "undo.jsonl").stat().st_ino
    said = refusal(whole, whole.instance, whole.lab.folder / "gateway.json")
    assert said == f'instance "{whole.instance}" runs already, or is just being undone'
    assert (whole.folder / "undo.jsonl").read_bytes() == journal
    assert (whole.folder / "undo.jsonl").stat().st_ino == inode
    steered(whole)
    assert whole.command("down").ok
    assert not differences(before, settled(whole))


def test_there_is_one_in_a_network_namespace(whole: Whole) -> None:
    whole.start("open")
    other = f"{whole.instance}-other"
    said = refusal(whole, other, whole.lab.folder / "gateway.json")
    assert f'instance "{whole.instance}" runs in this network namespace' in said
    assert not whole.folder.with_name(other).exists()
    steered(whole)
    # One that changes nothing of the host may run beside it.
    path = whole.lab.folder / "proxy.json"
    path.write_text(json.dumps({"inbounds": [{"type": "socks", "listen": "127.0.0.1", "listen_port": 1080}]}))
    beside = whole.gateway.popen([*whole.program, "run", "-c", path, "--instance", other], cwd=ROOT)
    try:
        assert until(lambda: alive(whole.folder.with_name(other) / "control.sock"))
    finally:
        os.kill(beside.pid, signal.SIGTERM)
        beside.wait(10)
    assert not whole.folder.with_name(other).exists()
    # A dead one does not stand in the way.
    whole.end(signal.SIGKILL)
    assert whole.command("down").ok


PATCHED = """
import errno
from gateway.cli import main
from gateway.core.errors import KernelError
{}
raise SystemExit(main())
"""
REFUSED = """
from gateway.kernel.nft import base
def refuse(*words):
    raise KernelError("nft", errno.EPERM)
base.apply = refuse
"""
FULL = """
from gateway.kernel.netlink.session import Session
async def refuse(self):
    raise KernelError("netlink", errno.EMFILE)
Session.open = refuse
"""
LATE = """
from gateway.steering import Kernel
async def refuse(self, state):
    raise OSError(errno.EMFILE, "Too many open files")
Kernel._listen = refuse
"""
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "port": ("", {"inbounds": [{"type": "socks", "tag": tag, "listen": "::1", "listen_port": 1080} for tag in "ab"]},
             "inbound b: Address already in use"),
    "rules": ("", {"route": {"rule_set": [{"type": "local", "tag": "set", "format": "source", "path": "/none"}],
                             "rules": [{"rule_set": "set", "outbound": "far"}]}}, "/none"),
    "log": ("", {"log": {"output": "/none/log"}}, "log.output: /none/log: No such file or directory"),
    "nft": (REFUSED, {}, "nft: Operation not permitted"),
    "netlink": (FULL, {}, "netlink: Too many open files"),
    "late": (LATE, {}, "Too many open files"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_start_that_fails_leaves_nothing(whole: Whole, name: str) -> None:
    patch, more, wanted = WRONG[name]
    path = whole.write("open")
    value = json.loads(path.read_text()) | more
    path.write_text(json.dumps(value))
    before = settled(whole)
    said = refusal(whole, whole.instance, path, (sys.executable, "-c", PATCHED.format(patch)))
    assert wanted in said
    assert not differences(before, settled(whole))
    assert not whole.folder.exists()


def test_a_start_that_fails_leaves_the_plain_router_of_the_last(whole: Whole) -> None:
    whole.start("open")
    whole.end(signal.SIGTERM)
    before = settled(whole)
    path = whole.lab.folder / "gateway.json"
    refusal(whole, whole.instance, path, (sys.executable, "-c", PATCHED.format(LATE)))
    # Its table is made anew, and routes are listed in the order in which they came.
    changed = {line.partition(":")[0] for line in differences(before, settled(whole))}
    assert changed <= {"nft", "routes"}
    assert whole.tables() == {"gateway_base"}
    assert whole.ask("tcp", whole.client, DIRECT[0]) == KERNEL[0]


def test_without_capabilities(whole: Whole) -> None:
    path = whole.write("open")
    words = ("setpriv", "--inh-caps=-all", "--bounding-set=-all", *whole.program)
    assert "Operation not permitted" in refusal(whole, whole.instance, path, words)


@pytest.mark.parametrize("fail", ["open", "hold"])
@pytest.mark.parametrize("phase", ["start", "reload"])
def test_it_stops_at_any_moment(whole: Whole, phase: str, fail: str) -> None:
    """By one signal or by three; a reload may be at work."""
    before = settled(whole)
    for number in range(6):
        if phase == "start":
            process = whole.begin(fail)
            time.sleep(random.uniform(0, 1.5))
        else:
            whole.start(fail)
            assert whole.process is not None
            process = whole.process
            whole.rules = [{"ip_cidr": [f"192.0.2.{number}"], "outbound": "far"}]
            whole.reload(fail)
            time.sleep(random.uniform(0, 0.3))
        for _ in range(random.choice((1, 3))):
            if process.running:
                process.signal(signal.SIGTERM)
                time.sleep(random.uniform(0, 0.05))
        process.wait(20)
        assert "Traceback" not in process.err.read_text()
        assert not alive(whole.folder / "control.sock")
        assert not (whole.folder / "lock").exists() or phase == "start"
        standing = "gateway" in whole.tables()
        assert standing == (len(keepers(whole)) == 1), "what is held has a keeper, and nothing else is there"
        assert not standing or fail == "hold"
    assert whole.command("down").ok
    assert not differences(before, settled(whole))


def test_down_in_the_middle_of_a_start(whole: Whole) -> None:
    before = settled(whole)
    for _ in range(4):
        process = whole.begin("open")
        assert until(lambda: (whole.folder / "lock").exists())
        time.sleep(random.uniform(0, 0.5))
        assert whole.command("down").ok
        assert not process.running
        assert not differences(before, settled(whole))
