"""T21: kernels that can less. What the documentation says works, works; doctor and status say what is lost.

Without BTF alone: tests/netns/kernel/test_without_btf.py.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.dials import Dials
from gateway.lab.process import Result, User

from .conftest import DIRECT, KERNEL, PROXIED, ROOT, TARGETS, USERSPACE, Whole, leaked, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
EVERY = tuple(itertools.product(("tcp", "udp"), (0, 1)))
SOMEBODY = User(4001, 4100)
SECCOMP = """
import ctypes, os, struct, sys
numbers = {"x86_64": 321, "aarch64": 280}
code = [(0x20, 0, 0, 0), (0x15, 0, 1, numbers[os.uname().machine]), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
head = ctypes.create_string_buffer(struct.pack("@HxxxxxxP", len(code), ctypes.addressof(program)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0
assert prctl(22, 2, ctypes.byref(head), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""bpf(2) is EPERM, as in a container (seccomp(2): load the number of the call, compare, errno 1 or allow)."""
OWNERLESS = """
import errno
from gateway.cli import main
from gateway.core.errors import KernelError
from gateway.kernel.nft.library import Library
run = Library.run
def refuse(self, text, *, check=False):
    if any(line.strip() == "flags owner" for line in text.splitlines()):
        raise KernelError("nft", errno.EOPNOTSUPP, "Operation not supported")
    return run(self, text, check=check)
Library.run = refuse
raise SystemExit(main())
"""
NFT = """#!/bin/sh
# Linux before 5.12: EOPNOTSUPP for what it does not know.
text=$(cat)
case $text in *"flags owner"*) echo "Error: Could not process rule: Operation not supported" >&2; exit 1;; esac
printf %s "$text" | exec {nft} "$@"
"""
CAPABILITIES = "-bpf,-perfmon,-sys_admin"
GATEWAY = (sys.executable, "-m", "gateway")
LINES = {
    "seccomp": ((sys.executable, "-c", SECCOMP, *GATEWAY), {"bpf-process", "flow-offload"}),
    "capabilities": (
        ("setpriv", "--inh-caps", CAPABILITIES, "--bounding-set", CAPABILITIES, *GATEWAY),
        {"CAP_BPF", "CAP_PERFMON", "bpf-process", "flow-offload"},
    ),
    "cgroup": (
        ("unshare", "--mount", "--propagation", "private", "sh", "-c",
         'umount -a -l -t cgroup2 && exec "$0" "$@"', *GATEWAY),
        {"cgroup2"},
    ),
    "owner": ((sys.executable, "-c", OWNERLESS), {"nft-owner"}),
}  # fmt: skip


@pytest.fixture(params=list(LINES))
def degraded(request: pytest.FixtureRequest, whole: Whole) -> tuple[Whole, str]:
    whole.program, _ = LINES[request.param]
    # What somebody does is userspace's.
    whole.rules = [{"user_id": [SOMEBODY.uid], "outbound": "far"}]
    return whole, request.param


def begin(whole: Whole, what: str, fail: str) -> None:
    whole.start(fail, **({"kernel": {}} if what == "cgroup" else {}))


ASK = """
import socket, sys
sock = socket.create_connection((sys.argv[1], 7), 5)
sock.send(b"?")
print(sock.recv(100).decode().split()[0])
"""


def doctor(whole: Whole, what: str) -> dict[str, Any]:
    """Findings that are not well, by name."""
    environment = {}
    if what == "owner":
        folder = whole.lab.folder / "old"
        folder.mkdir(exist_ok=True)
        path = whole.gateway.run(["sh", "-c", "command -v nft"], check=True).out.strip()
        (folder / "nft").write_text(NFT.format(nft=path))
        (folder / "nft").chmod(0o755)
        environment["PATH"] = f"{folder}:{os.environ['PATH']}:/usr/sbin:/sbin"
    done: Result = whole.gateway.run(
        [*whole.program, "doctor", "--json"], cwd=ROOT, environment=environment, timeout=60
    )
    report = done.json()
    return {one["name"]: one for one in report["findings"] if not one["ok"]}


def test_t21_a_lesser_kernel_does_what_is_written(degraded: tuple[Whole, str]) -> None:
    whole, what = degraded
    told = doctor(whole, what)
    assert set(LINES[what][1]) <= set(told), told
    assert not any(told[name]["needed"] for name in LINES[what][1]), "it does without"
    begin(whole, what, "open")
    for kind, family in EVERY:
        assert whole.ask(kind, whole.client, DIRECT[family]) == KERNEL[family]
        assert whole.ask(kind, whole.client, PROXIED[family]) == USERSPACE[family]
    assert whole.names("192.0.2.53") == "198.51.100.1"
    # Rules by user: nftables' own judgement, where there are no programs.
    words = [sys.executable, "-c", ASK, DIRECT[0]]
    assert whole.gateway.run(words, user=SOMEBODY, check=True).out.strip() == USERSPACE[0]
    assert whole.gateway.run(words, check=True).out.strip() == KERNEL[0]
    said = whole.command("status").out
    wanted = {
        "seccomp": "process rules: ", "capabilities": "process rules: ", "cgroup": "process rules: ",
        "owner": "owner: the kernel knows no owners of tables",
    }  # fmt: skip
    assert wanted[what] in said
    assert ("offload: none; " in said) == (what in ("seccomp", "capabilities"))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM], ids=["killed", "hung", "stopped"])
@pytest.mark.parametrize("fail", ["open", "closed", "hold"])
def test_t21_without_owners_the_policy_holds(whole: Whole, fail: str, end: signal.Signals) -> None:
    """The reaper takes the table away, or lets it stand; measured as with an owner."""
    whole.program = LINES["owner"][0]
    whole.start(fail)
    assert whole.process is not None
    assert "flags owner" not in whole.gateway.run(["nft", "list", "table", "inet", "gateway"], check=True).out
    with Dials(whole.client, TARGETS) as dials:
        time.sleep(0.5)
        since = time.monotonic()
        whole.process.signal(end)
        assert until(lambda: not whole.process.running, 6)  # type: ignore[union-attr]
        gone = time.monotonic()
        left = {"gateway_base"} | ({"gateway"} if fail == "hold" else set())
        assert until(lambda: whole.tables() == left, 2), whole.tables()
        time.sleep(2)
    after = [made for made in dials.made if gone + 0.5 < made.begun < gone + 1]
    works = {"open": ("direct", "proxied"), "closed": (), "hold": ("direct",)}[fail]
    assert len(after) > 20
    assert {made.name for made in after if made.answered} == {
        target.name for target in TARGETS if target.name.startswith(works or ("nothing",))
    }
    if fail != "open":
        assert not [made for made in dials.made if leaked(made)][:5]
    assert all(made.answered for made in dials.made if made.begun < since - 0.1)
    # A successor finds what was left, and takes its place.
    whole.start(fail)
    assert whole.ask("tcp", whole.client, PROXIED[0]) == USERSPACE[0]


def test_t21_where_the_reaper_is_killed_too_down_takes_the_table(whole: Whole) -> None:
    whole.program = LINES["owner"][0]
    whole.start("open")
    assert whole.process is not None
    children = Path(f"/proc/{whole.process.pid}/task/{whole.process.pid}/children").read_text().split()
    for pid in children:
        if b"watcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(int(pid), signal.SIGKILL)
            os.kill(whole.process.pid, signal.SIGKILL)
    whole.process.wait()
    assert whole.tables() == {"gateway", "gateway_base"}, "nobody is left to take it away"
    assert whole.command("down").ok
    assert whole.tables() == set()
