"""The whole gateway on a kernel without BTF: rules hold, status says what is lost, explain where flows are judged."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.kernel import conntrack, mark
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
os.setresuid(int(sys.argv[1]), int(sys.argv[2]), 0)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("203.0.113.2", 9))
sock.send(b"x")
print(sock.getsockname()[1])
"""
PROGRAM = os.path.realpath(sys.executable)
"""As the kernel knows who sends."""
USERS = ((4001, 4001), (4002, 4002), (4002, 4001), (4001, 4002), (0, 0))
"""Real and effective."""
BTF = "mount -t tmpfs none /sys/kernel/btf"
MODULE = "mount -t tmpfs none /usr/lib/python3/dist-packages/bcc"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab:
        yield lab


def classes(gateway: Host) -> dict[tuple[int, int], int]:
    """Class of the flow that a program begins, by its real and effective user."""
    found = {}
    for real, effective in USERS:
        port = int(gateway.run([sys.executable, "-c", SEND, str(real), str(effective)], check=True).out)
        (flow,) = (entry for entry in gateway.call(lambda: conntrack.dump(0, 0)) if entry.source.port == port)
        found[real, effective] = flow.mark & mark.CLASS
    return found


def explained(instance: str) -> tuple[dict[tuple[int, int], int], set[str]]:
    """What ``classes`` will find, as the running gateway predicts it; what it says of where it is judged."""
    found, lines = {}, set()
    for real, effective in USERS:
        request = {"command": "explain", "destination": "203.0.113.2", "port": 9, "network": "udp"}
        answer = ask(RUN / instance, {**request, "process": PROGRAM, "uid": effective})
        assert answer["ok"], answer
        assert answer["where"] == ("kernel" if answer["verdict"] == "direct" else "userspace")
        found[real, effective] = getattr(mark, answer["verdict"].upper())
        lines.add(answer["text"][-1])
    return found, lines


@pytest.mark.parametrize(
    ("hidden", "told"),
    [
        ("true", ""),
        (BTF, "process programs: BCC's program stands in: "),
        (f"{BTF}; {MODULE}", "process rules: load the process programs: load process.bpf.o: "),
    ],
    ids=["co-re", "bcc", "neither"],
)
@pytest.mark.parametrize(
    "more",
    [{}, {"process_name": ["no-such-program"]}, {"process_path": [PROGRAM], "user_id": [4002]}],
    ids=["users", "names", "paths"],
)
def test_rules_of_local_flows(lab: Lab, hidden: str, told: str, more: dict[str, Any]) -> None:
    gateway, instance = lab.host("gateway"), f"lab-{lab.id}"
    path = lab.folder / "gateway.json"
    # What dials in a way that the kernel does not know is userspace's.
    rules = [{"user_id": [4001], "outbound": "far"}, *([{**more, "outbound": "far"}] if more else [])]
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
        # With a name in the plan none but the CO-RE programs is sure of anybody.
        blind = bool(told and more)
        second = mark.USER if "process_path" in more else mark.DIRECT
        first, second, other = [mark.SNIFF] * 3 if blind else (mark.USER, second, mark.DIRECT)
        found = classes(gateway)
        assert found == {
            (4001, 4001): first, (4002, 4002): second, (4002, 4001): first, (4001, 4002): second, (0, 0): other,
        }  # fmt: skip
        predicted, reasons = explained(instance)
        assert predicted == found
        assert any("does not know this host's programs" in reason for reason in reasons) == blind
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
        gateway.run([sys.executable, "-m", "gateway", "down", *words], cwd=ROOT, check=True)
