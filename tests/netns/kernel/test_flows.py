"""``gateway flows`` of a whole gateway between a client and a server: one flow in each plane."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import End, Host, Link, Route, Topology

from .whole import ROOT, Whole

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("flows")]

CLIENT, WAN, SERVER = "192.168.7.2", "203.0.113.1", "203.0.113.2"
TOPOLOGY = Topology(
    "flows",
    (
        Host("client", addresses={"eth0": (f"{CLIENT}/24",)}, routes=(Route("default", "192.168.7.1"),)),
        Host("gateway", addresses={"lan0": (), "wan0": ()}),
        Host("server", addresses={"eth0": (f"{SERVER}/24",)}),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
)
DIRECT, SNIFFED, BYPASSED = 7001, 7002, 7003
RULES = [
    {"port": DIRECT, "outbound": "direct"},
    {"action": "sniff"},
    {"domain": "never.example", "action": "reject"},
    {"domain": "www.example", "outbound": "direct"},
    {"port": BYPASSED, "action": "bypass"},
]
HELLO = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n"
SIZE = 100_000


class Way(Whole):
    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.path.write_text(json.dumps({
            "outbounds": [{"type": "direct", "tag": "direct"}],
            "route": {"rules": RULES, "find_process": True},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {"address": [f"{WAN}/24"], "gateway": [SERVER]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24"]}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": "off"},
            },
        }))  # fmt: skip
        self.start()
        poll(self.ready, self.process.told(), 30)

    def ready(self) -> bool:
        told = self.status()
        return told.get("state") == "running" and told["steering"] and "default via" in self.routes()

    def routes(self) -> str:
        return str(self.gateway.run(["ip", "-4", "route"]).out)

    def flows(self, *words: str) -> tuple[list[dict[str, Any]], str]:
        """What is listed, and what is said beside it."""
        done = self.command("flows", "--json", *words)
        assert done.ok, done.err
        return done.json()["flows"], done.err

    def account(self, on: bool) -> None:
        """Takes effect on flows that begin then."""
        self.gateway.call(lambda: Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text(str(int(on))))

    @contextmanager
    def open(self, port: int) -> Iterator[socket.socket]:
        """A connection from the client over which ``HELLO`` has gone there and ``SIZE`` bytes have come back."""
        with closing(self.server.socket(socket.AF_INET)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVER, port))
            listener.listen()
            near = self.client.socket(socket.AF_INET)
            near.settimeout(20)
            near.connect((SERVER, port))
            near.sendall(HELLO)
            listener.settimeout(20)
            far, _ = listener.accept()
        with near, far:
            far.settimeout(20)
            assert far.recv(1000) == HELLO
            far.sendall(bytes(SIZE))
            left = SIZE
            while left:
                left -= len(near.recv(left))
            yield near


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Way(lab)) as way:
        yield way


@pytest.mark.slow
def test_both_planes(way: Way) -> None:
    way.account(True)
    with way.open(DIRECT) as direct, way.open(SNIFFED) as sniffed:
        sources = ["{}:{}".format(*sock.getsockname()) for sock in (direct, sniffed)]
        found, said = way.flows("--filter", SERVER, "--filter", CLIENT, "--sort", "destination")
        assert [(flow["plane"], flow["source"], flow["destination"]) for flow in found] == [
            ("kernel", sources[0], f"{SERVER}:{DIRECT}"),
            ("userspace", sources[1], f"{SERVER}:{SNIFFED}"),
        ]
        kernel, userspace = found
        assert all((flow["network"], flow["chain"]) == ("tcp", ["direct"]) for flow in found)
        # The kernel counts headers, and the packets that carry nothing.
        assert len(HELLO) < kernel["up"]
        assert SIZE < kernel["down"] < 2 * SIZE
        assert kernel["packets_up"] > 1 < kernel["packets_down"]
        assert kernel["timeout"] > 0
        assert (kernel["inbound"], kernel["rule"], kernel["age"]) == (None, 0, None)
        assert (userspace["up"], userspace["down"]) == (len(HELLO), SIZE)
        assert (userspace["name"], userspace["rule"], userspace["inbound"]) == ("www.example", 3, "gateway")
        assert 0 <= userspace["age"] < 60
        assert said == ""
        assert [flow["plane"] for flow in way.flows("--filter", "www.example")[0]] == ["userspace"]
        lines = way.command("flows").out.splitlines()
        assert len([line for line in lines if SERVER in line or "www.example:7002" in line]) == 2
        assert max(map(len, lines)) <= 120


HOLD = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.sendall(b"x")
print(sock.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_the_program_of_a_flow_of_the_router(way: Way) -> None:
    """Known where no rule asks for one; of what runs outside of the programs' cgroup the user alone."""
    with closing(way.server.socket(socket.AF_INET)) as listener, closing(way.gateway.socket()) as other:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, DIRECT))
        listener.listen()
        running = way.gateway.popen([sys.executable, "-c", HOLD, SERVER, str(DIRECT)])
        try:
            port = poll(lambda: running.out.read_text().strip(), running.told(), 20)
            other.connect((SERVER, DIRECT))
            rows = {row["source"].rpartition(":")[2]: row for row in way.flows("--filter", f"{SERVER}:{DIRECT}")[0]}
            mine, foreign = rows[port], rows[str(other.getsockname()[1])]
            assert (mine["plane"], mine["process"]) == ("kernel", os.path.realpath(sys.executable))
            assert (mine["pid"], mine["user"]) == (running.pid, "root")
            assert (foreign["process"], foreign["pid"], foreign["user"]) == (None, None, "root")
        finally:
            running.kill()


def test_a_bypass_stays_in_the_kernel(way: Way) -> None:
    """It says the same as the flow that is sniffed."""
    with way.open(BYPASSED) as sock:
        found, _ = way.flows("--filter", "{}:{}".format(*sock.getsockname()))
        assert [(flow["plane"], flow["chain"]) for flow in found] == [("kernel", ["direct"])]
    told = way.command("explain", SERVER, "--port", str(BYPASSED), "--source", CLIENT, "--json").json()
    assert (told["where"], told["action"], told["rule"]) == ("kernel", "bypass", 4)


def test_accounting_is_switched_on_unless_it_is_not_wanted(way: Way) -> None:
    """It is undone by ``down`` with all the rest: tests/netns/whole/test_nothing_left.py."""

    def counting() -> int:
        return int(way.gateway.call(lambda: Path("/proc/sys/net/netfilter/nf_conntrack_acct").read_text()))

    def reload(accounting: bool) -> None:
        value = json.loads(way.path.read_text())
        value["gateway"]["kernel"]["accounting"] = accounting
        way.path.write_text(json.dumps(value))
        os.kill(way.process.pid, signal.SIGHUP)

    assert counting() == 1
    reload(False)
    poll(lambda: counting() == 0, "accounting is not switched off")
    reload(True)
    poll(lambda: counting() == 1, "accounting is not switched on again")


@pytest.mark.slow
def test_what_has_passed(way: Way) -> None:
    """By class, whether anybody has looked or not; rates of what moves while two looks are made."""
    before = {one["name"]: one for one in way.status()["classes"]}
    with way.open(DIRECT) as direct, way.open(SNIFFED):
        after = {one["name"]: one for one in way.status()["classes"]}
        grown = {name: after[name]["bytes"] - before[name]["bytes"] for name in before}
        assert grown["user"] == SIZE + len(HELLO)
        assert SIZE < grown["direct"] < 2 * SIZE
        assert after["direct"]["flows"] - before["direct"]["flows"] == 1
        source = "{}:{}".format(*direct.getsockname())
        running = way.gateway.popen(
            [sys.executable, "-m", "gateway", "flows", "--json", "--interval", "4", "--sort", "rate", "--instance",
             way.instance], cwd=ROOT)  # fmt: skip
        while running.running:
            direct.sendall(bytes(100))
            time.sleep(0.01)  # nobody reads it
        found = json.loads(running.out.read_text())["flows"]
        assert found[0]["source"] == source
        assert found[0]["rate_up"] > 100
        assert [flow["rate_down"] for flow in found if flow["plane"] == "userspace"] == [0.0]
    lines = way.command("status").out.splitlines()
    assert any(line.startswith("direct: ") and " packets" in line for line in lines)
    done = way.command("flows", "--by", "outbound")
    assert done.out.splitlines()[1].startswith("direct ")


def test_the_table_ends_first(way: Way) -> None:
    """Of all files of a killed gateway: while others are closed one by one the table would go on sending flows here."""
    folder = Path(f"/proc/{way.process.pid}")
    files = {int(entry.name): os.readlink(entry) for entry in (folder / "fd").iterdir()}
    sockets = [line.split() for line in (folder / "net/netlink").read_text().splitlines()[1:]]
    netfilter = {f"socket:[{fields[9]}]" for fields in sockets if fields[1] == "12"}
    assert files[max(files)] in netfilter
    assert any("bpf" in target for target in files.values())


def test_without_accounting(way: Way) -> None:
    way.account(False)
    with way.open(DIRECT) as sock:
        found, said = way.flows("--filter", "{}:{}".format(*sock.getsockname()))
        assert [(flow["plane"], flow["up"], flow["packets_down"]) for flow in found] == [("kernel", None, None)]
        assert said.count("sysctl -w net.netfilter.nf_conntrack_acct=1") == 1
