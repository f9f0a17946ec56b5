"""A ground for the cgroup programs: a fresh sub-cgroup, fresh network namespaces, a foreign-looking program in them.

The program is a copy of the Python interpreter: whatever path it is copied to is its executable. Its sockets' traffic
goes to an interface behind which nobody answers, where an nft set counts the marks it leaves with.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.kernel import cgroup
from gateway.kernel.bpf.fallback import Compiled
from gateway.kernel.bpf.process import Loaded, relocated

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("probe.txt").read_text()

RULES = """
table inet seen {
  set marks { type inet_proto . mark; flags dynamic; size 1024; }
  set marks6 { type inet_proto . mark; flags dynamic; size 1024; }
  chain output { type filter hook output priority filter;
    oifname "out0" meta l4proto { tcp, udp } meta nfproto ipv4 add @marks { meta l4proto . meta mark }
    oifname "out0" meta l4proto { tcp, udp } meta nfproto ipv6 add @marks6 { meta l4proto . meta mark }
  }
}
"""


def run(*words: str, **more: Any) -> str:
    return subprocess.run(words, check=True, text=True, capture_output=True, **more).stdout


@dataclass
class Ground:
    """One sub-cgroup and one network namespace."""

    cgroup: Path
    netns: str
    folder: Path
    children: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"/run/netns/{self.netns}"

    def copy(self, name: str) -> str:
        """A copy of the interpreter at ``name`` below the test's folder."""
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2("/usr/bin/python3.11" if os.path.exists("/usr/bin/python3.11") else sys.executable, target)
        return str(target)

    def start(
        self, program: str, *, netns: str = "", argv0: str = "", user: tuple[int, int, list[int]] | None = None
    ) -> Child:
        """Run the probe under ``program``, perhaps as (uid, gid, groups); it obeys orders one a line."""
        drop: list[str] = []
        if user:
            uid, gid, groups = user
            listed = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
            drop = ["setpriv", f"--reuid={uid}", f"--regid={gid}", listed]

        def enter() -> None:
            cgroup.move(0, self.cgroup)

        child = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{netns or self.netns}", *drop, "/bin/bash", "-c",
             'exec -a "$1" "$0" -I -S -u -c "$2"', program, argv0 or program, PROBE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=enter,
        )  # fmt: skip
        self.children.append(child)
        return Child(child)

    def cookie(self) -> int:
        code = "import socket;print(int.from_bytes(socket.socket(2,2).getsockopt(1,71,8),'little'))"
        return int(run("nsenter", f"--net={self.namespace}", sys.executable, "-c", code))

    def marks(self, family: int) -> set[tuple[str, int]]:
        """(protocol, mark) of every packet that left through out0."""
        name = "marks" if family == 4 else "marks6"
        text = run("nsenter", f"--net={self.namespace}", "nft", "list", "set", "inet", "seen", name)
        return {(kind, int(value, 16)) for kind, value in re.findall(r"(tcp|udp) \. (0x[0-9a-f]+)", text)}

    def forget(self) -> None:
        for name in ("marks", "marks6"):
            run("nsenter", f"--net={self.namespace}", "nft", "flush", "set", "inet", "seen", name)

    def close(self) -> None:
        for child in self.children:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe:
                    pipe.close()


class Child:
    """The probe at the other end of two pipes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    def order(self, verb: str, /, **words: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"order": verb, **words}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "it died"}')
        assert "error" not in answer, answer
        return answer["value"]


def make_netns(name: str) -> None:
    run("ip", "netns", "add", name)
    for line in (
        "ip link set lo up",
        "ip link add out0 type veth peer name out1",
        "ip link set out1 up",
        "ip addr add 192.0.2.2/24 dev out0",
        "ip addr add 2001:db8::2/64 dev out0 nodad",
        "ip link set out0 up",
    ):
        run("nsenter", f"--net=/run/netns/{name}", *line.split())
    run("nsenter", f"--net=/run/netns/{name}", "nft", "-f", "-", input=RULES)


@pytest.fixture(scope="session", autouse=True)
def objects() -> None:
    """The objects under test are those of the sources."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "bpf")], check=True)


LOADERS: dict[str, Callable[[], Loaded]] = {
    "co-re": lambda: Loaded(relocated(), ()),
    "bcc": lambda: Loaded(Compiled(), (), "asked for by a test"),
}


EITHER = [pytest.param(name, marks=pytest.mark.slow) if name == "bcc" else name for name in LOADERS]
"""BCC compiles each time, for seconds."""


@pytest.fixture(params=EITHER)
def loader(request: pytest.FixtureRequest) -> Callable[[], Loaded]:
    """Either way of the programs into the kernel."""
    return LOADERS[request.param]


@pytest.fixture
def netns() -> Iterator[Callable[[], str]]:
    names: list[str] = []

    def make() -> str:
        name = f"gwbpf-{os.getpid()}-{secrets.token_hex(3)}"
        names.append(name)
        make_netns(name)
        return name

    yield make
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def ground(tmp_path: Path, netns: Callable[[], str]) -> Iterator[Ground]:
    # pytest's folder is 0700; other users must reach the copies.
    for folder in (tmp_path, *tmp_path.parents):
        if folder == tmp_path or folder.name.startswith(("pytest", "popen-")):  # also of a parallel worker
            folder.chmod(0o755)
    group = cgroup.make(cgroup.mount_point() / f"gwbpf-{os.getpid()}-{secrets.token_hex(3)}")
    made = Ground(group, netns(), tmp_path)
    try:
        yield made
    finally:
        made.close()
        cgroup.remove(group)
