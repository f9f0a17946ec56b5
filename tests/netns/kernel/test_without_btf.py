"""The whole gateway on a kernel without BTF: rules hold, status says what is lost, explain where flows are judged."""

from __future__ import annotations

import grp
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.kernel import cgroup, conntrack, mark
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.topology import End, Link, Topology
from gateway.lab.topology import Host as Plan
from gateway.service.control import ask

from .conftest import until

pytestmark = pytest.mark.root
RUN = Path("/run/gateway")
ROOT = Path(__file__).resolve().parents[3]
TOPOLOGY = Topology(
    "nobtf",
    (Plan("gateway", addresses={"wan0": ()}), Plan("server", addresses={"eth0": ("203.0.113.2/24",)})),
    (Link(End("gateway", "wan0"), End("server", "eth0")),),
)
SEND = """
import os, socket, sys
real, effective, gid, *groups = map(int, sys.argv[1:])
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(real, effective, 0)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("203.0.113.2", 9))
sock.send(b"x")
print(sock.getsockname()[1])
"""
PROGRAM = os.path.realpath(sys.executable)
"""As the kernel knows who sends."""
GROUP = "games"
GID = grp.getgrnam(GROUP).gr_gid
Sender = tuple[int, ...]
"""Real and effective user, group, supplementary groups."""
SENDERS: tuple[Sender, ...] = (
    (4001, 4001, 4100), (4002, 4002, 4100), (4002, 4001, 4100), (4001, 4002, 4100), (0, 0, 0),
    (4003, 4003, GID, 4100), (4003, 4003, 4100, 4101, GID),
)  # fmt: skip
BTF = "mount -t tmpfs none /sys/kernel/btf"
MODULE = "mount -t tmpfs none /usr/lib/python3/dist-packages/bcc"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab:
        yield lab


def classes(gateway: Host) -> dict[Sender, int]:
    """Class of the flow that a program begins."""
    found = {}
    for sender in SENDERS:
        port = int(gateway.run([sys.executable, "-c", SEND, *map(str, sender)], check=True).out)
        found[sender] = flow_class(gateway, port)
    return found


def flow_class(gateway: Host, port: int) -> int:
    (flow,) = (entry for entry in gateway.call(lambda: conntrack.dump(0, 0)) if entry.source.port == port)
    return flow.mark & mark.CLASS


def explained(instance: str) -> tuple[dict[Sender, int], set[str]]:
    """What ``classes`` will find, as the running gateway predicts it; what it says of where it is judged."""
    found, lines = {}, set()
    for sender in SENDERS:
        request = {"command": "explain", "destination": "203.0.113.2", "port": 9, "network": "udp"}
        answer = ask(RUN / instance, {**request, "process": PROGRAM, "uid": sender[1], "gids": sender[2:]})
        assert answer["ok"], answer
        assert answer["where"] == ("kernel" if answer["verdict"] == "direct" else "userspace")
        found[sender] = getattr(mark, answer["verdict"].upper())
        lines.add(answer["text"][-1])
    return found, lines


HIDDEN = pytest.mark.parametrize(
    ("hidden", "told"),
    [
        pytest.param("true", "", id="co-re"),
        pytest.param(BTF, "process programs: BCC's program stands in: ", id="bcc", marks=pytest.mark.slow),
        pytest.param(
            f"{BTF}; {MODULE}", "process rules: load the process programs: load process.bpf.o: ", id="neither",
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip


@HIDDEN
@pytest.mark.parametrize(
    "more",
    [
        pytest.param({}, id="users", marks=pytest.mark.slow),
        pytest.param({"process_name": ["no-such-program"]}, id="names", marks=pytest.mark.slow),
        pytest.param({"process_path": [PROGRAM], "user_id": [4002]}, id="paths", marks=pytest.mark.slow),
        pytest.param({"group": [GROUP]}, id="groups", marks=pytest.mark.slow),
    ],
)
def test_rules_of_local_flows(lab: Lab, hidden: str, told: str, more: dict[str, Any]) -> None:
    rules = [{"user_id": [4001], "outbound": "far"}, *([{**more, "outbound": "far"}] if more else [])]
    with running(lab, hidden, told, rules) as instance:
        # With a name or a group in the plan none but the CO-RE programs is sure of anybody.
        blind = bool(told and more)
        second = mark.USER if "process_path" in more else mark.DIRECT
        member = mark.USER if "group" in more else mark.DIRECT
        wanted = (mark.USER, second, mark.USER, second, mark.DIRECT, member, member)
        found = classes(lab.host("gateway"))
        assert found == dict(zip(SENDERS, [mark.SNIFF] * len(SENDERS) if blind else wanted, strict=True))
        predicted, reasons = explained(instance)
        assert predicted == found
        assert any("does not know this host's programs" in reason for reason in reasons) == blind


@HIDDEN
@pytest.mark.slow
def test_rules_by_cgroup(lab: Lab, hidden: str, told: str) -> None:
    """BCC's program knows cgroups as the other does: where nothing else is asked for, later flows are the kernel's."""
    gateway = lab.host("gateway")
    listed, other = (cgroup.make(gateway.group / name) for name in ("listed", "other"))
    rules = [{"cgroup": f"/{listed.relative_to(cgroup.mount_point())}", "outbound": "far"}]

    def sent(group: Path) -> int:
        """Class of a flow that a program of this cgroup begins."""
        enter = f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'
        command = ["sh", "-c", enter, sys.executable, "-c", SEND, "4002", "4002", "4100"]
        return flow_class(gateway, int(gateway.run(command, check=True).out))

    with running(lab, hidden, told, rules):
        for group, later in ((listed, mark.USER), (other, mark.DIRECT)):
            assert sent(group) == mark.SNIFF
            if "process rules" in told:
                assert sent(group) == mark.SNIFF
            else:  # once userspace has come to look, which a busy machine delays
                assert until(lambda group=group, later=later: sent(group) == later, 20)


@contextmanager
def running(lab: Lab, hidden: str, told: str, rules: list[dict[str, Any]]) -> Iterator[str]:
    """A gateway that steers, by its instance; what its status tells of processes begins with ``told``."""
    gateway, instance = lab.host("gateway"), f"lab-{lab.id}"
    path = lab.folder / "gateway.json"
    # What dials in a way that the kernel does not know is userspace's.
    path.write_text(json.dumps({
        "outbounds": [{"type": "direct", "tag": "direct"}, {"type": "direct", "tag": "far", "connect_timeout": "9s"}],
        "route": {"rules": rules, "final": "direct"},
        "gateway": {
            "uplinks": [{"interface": "wan0", "static": {"address": ["203.0.113.1/24"], "gateway": ["203.0.113.2"]}}],
            "kernel": {"cgroup": str(gateway.group)},
        },
    }))  # fmt: skip
    words = ("--instance", instance)
    command = [sys.executable, "-m", "gateway", "run", "-c", str(path), *words]
    script = f'set -e; {hidden}; exec "$0" "$@"'
    process = gateway.popen(["unshare", "--mount", "--propagation", "private", "sh", "-c", script, *command], cwd=ROOT)

    def said() -> str:
        return str(gateway.run([sys.executable, "-m", "gateway", "status", *words], cwd=ROOT).out)

    try:
        assert until(lambda: "the kernel steers" in said(), 60), process.told()
        lines = [line for line in said().splitlines() if line.startswith("process ")]
        assert [line.startswith(told) for line in lines] == ([True] if told else [])
        yield instance
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
        gateway.run([sys.executable, "-m", "gateway", "down", *words], cwd=ROOT, check=True)
