"""The laboratory itself: it is separate from the host and from its like, and leaves nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.box import RUN, STATE
from gateway.lab import cgroup, peer, state
from gateway.lab.lab import Lab
from gateway.lab.netns import NAMED, LabError
from gateway.lab.process import User
from gateway.lab.topology import Bridge, End, Host, Link, Service, Topology

pytestmark = pytest.mark.root
PAIR = Topology(
    "pair",
    (
        Host("left", addresses={"eth": ("192.0.2.1/24", "2001:db8:1::1/64")}, nameservers=("192.0.2.2",)),
        Host("right", addresses={"eth": ("192.0.2.2/24", "2001:db8:1::2/64")}, nameservers=("192.0.2.99",)),
    ),
    (Link(End("left", "eth"), End("right", "eth")),),
    (
        Service(
            "right",
            "login",
            (sys.executable, "-m", "gateway.lab.server", "--site", "right", "--shared", "{shared}", "--banner", "22"),
            ready=(("tcp", 22),),
        ),
    ),
)


def left_of(name: str) -> list[str]:
    """Everything on this machine that has the lab's id in its name, and its processes."""
    group = cgroup.root() / f"gateway-lab-{name}"
    found = [str(file) for file in NAMED.glob(f"*{name}*")] if NAMED.exists() else []
    found += [str(path) for path in (group, state.FOLDER / name) if path.exists()]
    found += [str(path) for place in (RUN, STATE) for path in place.glob(f"*{name}*")]
    return found + [line for line in Path("/proc/mounts").read_text().splitlines() if name in line]


def alive(pids: list[int]) -> list[int]:
    """Those that still run; one that nobody has reaped yet does not."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found


def greeting(lab: Lab, address: str) -> str:
    def work() -> str:
        with socket.create_connection((address, 22), timeout=10) as connection:
            return connection.makefile().readline()

    return lab.host("left").call(work)


def test_hosts_reach_each_other_over_both_families_and_the_site_saw_them() -> None:
    with Lab(PAIR) as lab:
        for address, client in (("192.0.2.2", "192.0.2.1"), ("2001:db8:1::2", "2001:db8:1::1")):
            assert greeting(lab, address).startswith(f"SSH-2.0-lab_right {client} ")
            record = lab.wait_seen("right", lambda entry, client=client: entry["client"][0] == client)
            assert (record["service"], record["ttl"]) == ("banner", 64)


def test_two_labs_at_once_do_not_meet() -> None:
    with Lab(PAIR) as first, Lab(PAIR) as second:
        assert first.id != second.id
        greeting(first, "192.0.2.2")
        first.wait_seen("right", lambda entry: True)
        assert second.seen("right") == []
        cookies = {
            lab.host("right").call(lambda: os.stat("/proc/thread-self/ns/net").st_ino) for lab in (first, second)
        }
        assert len(cookies) == 2


def test_nothing_is_left_and_the_host_is_as_before() -> None:
    def listing() -> list[str]:
        told = subprocess.run(["ip", "-json", "link"], capture_output=True, check=True, text=True).stdout
        rules = subprocess.run(["ip", "rule"], capture_output=True, check=True, text=True).stdout
        return [*sorted(link["ifname"] for link in json.loads(told)), rules]

    before = listing()
    with Lab(PAIR) as lab:
        name, pids = lab.id, cgroup.pids(Path(lab.state.group))
        assert len(pids) == 1
        assert listing() == before
    assert left_of(name) == []
    assert alive(pids) == []
    assert listing() == before


def test_a_failure_in_the_block_takes_it_down() -> None:
    name, pids = "", [0]

    def block() -> None:
        nonlocal name, pids
        with Lab(PAIR) as lab:
            name, pids = lab.id, cgroup.pids(Path(lab.state.group))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        block()
    assert name
    assert left_of(name) == []
    assert alive(pids) == []


def test_a_service_that_cannot_start_takes_it_down() -> None:
    before = set(os.listdir(state.FOLDER)) if state.FOLDER.exists() else set()
    broken = Topology("broken", PAIR.hosts, PAIR.links, (Service("left", "x", ("false",), ready=(("tcp", 1),)),))
    lab = Lab(broken)
    with pytest.raises(LabError, match="ended, with nothing on"):
        lab.up()
    with pytest.raises(LabError, match="not up"):
        lab.id  # noqa: B018
    # Other labs of this machine may have come and gone meanwhile; none of ours has stayed.
    mine = [found.id for found in state.every() if found.topology == "broken" and found.owner == os.getpid()]
    assert mine == [], before


def test_resolv_conf_is_the_hosts_own() -> None:
    outside = Path("/etc/resolv.conf").read_bytes()
    with Lab(PAIR) as lab:
        for name, server in (("left", "192.0.2.2"), ("right", "192.0.2.99")):
            host = lab.host(name)
            assert host.run(["cat", "/etc/resolv.conf"], check=True).out == f"nameserver {server}\n"
            assert host.call(lambda: Path("/etc/resolv.conf").read_text()) == f"nameserver {server}\n"
            host.run(["sh", "-c", "echo nameserver 192.0.2.7 > /etc/resolv.conf"], check=True)
            assert host.resolv_conf.read_text() == "nameserver 192.0.2.7\n"
        assert Path("/etc/resolv.conf").read_bytes() == outside


def test_a_peer_wanted_in_a_host_is_fetched_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A host of the lab has no way to a registry, and another resolv.conf."""
    monkeypatch.setenv("GATEWAY_CACHE", str(tmp_path))
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in ("net", "mnt")]

    class Source:
        key = "teller"

        def build(self, folder: Path) -> None:
            (folder / "bin").mkdir()
            found = subprocess.run(
                ["readlink", "/proc/self/ns/net", "/proc/self/ns/mnt"], capture_output=True, text=True, check=True
            )
            (folder / "bin" / "teller").write_text(found.stdout)

    with Lab(PAIR) as lab:
        program = lab.host("left").call(lambda: peer.path("teller", {"teller": Source()}))
    assert program.read_text().split() == outside


def test_every_process_has_a_fresh_cgroup_below_its_host() -> None:
    with Lab(PAIR) as lab:
        host = lab.host("left")
        seen = set()
        for _ in range(2):
            line = host.run(["cat", "/proc/self/cgroup"], check=True).out.splitlines()[-1]
            path = cgroup.root() / line.removeprefix("0::/")
            assert path.parent == host.group
            seen.add(path)
        assert len(seen) == 2


def test_sys_is_left_alone() -> None:
    with Lab(PAIR) as lab:
        mounts = lab.host("left").run(["cat", "/proc/self/mounts"], check=True).out.splitlines()
        outside = Path("/proc/self/mounts").read_text().splitlines()
        assert [line for line in mounts if " /sys" in line] == [line for line in outside if " /sys" in line]


def test_a_program_can_be_somebody_else() -> None:
    with Lab(PAIR) as lab:
        told = lab.host("left").run(
            ["sh", "-c", "id -u; id -g; id -G"], user=User(1234, 1235, (1236, 1237)), check=True
        )
        assert told.out.split() == ["1234", "1235", "1235", "1236", "1237"]


def test_what_a_program_started_ends_with_it() -> None:
    with Lab(PAIR) as lab:
        running = lab.host("left").popen(["sh", "-c", "setsid sleep 1000 & setsid sleep 1000 & echo ready; wait"])
        deadline = time.monotonic() + 20
        while len(pids := cgroup.pids(running.group)) < 3 or "ready" not in running.out.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.kill()
        assert alive(pids) == []


def test_a_program_ends_that_has_hardly_begun() -> None:
    with Lab(PAIR) as lab:
        for _ in range(20):
            lab.host("left").popen(["sleep", "1000"]).kill()


def test_a_program_that_does_not_end_is_ended() -> None:
    with Lab(PAIR) as lab, pytest.raises(LabError, match=r"no end after 0\.2 s"):
        lab.host("left").run(["sleep", "1000"], timeout=0.2)


def test_a_cable_can_come_later_and_be_pulled() -> None:
    apart = Topology("apart", PAIR.hosts)
    with Lab(apart) as lab:
        assert "eth" not in lab.host("left").run(["ip", "-brief", "link"], check=True).out
        lab.connect(PAIR.links[0])
        assert "192.0.2.1/24" in lab.host("left").run(["ip", "-brief", "addr"], check=True).out
        lab.start(PAIR.services[0])
        assert greeting(lab, "192.0.2.2").startswith("SSH-2.0-lab_right")
        lab.disconnect("left", "eth")
        assert "eth" not in lab.host("right").run(["ip", "-brief", "link"], check=True).out


def test_a_bridge_joins_its_ports() -> None:
    hosts = (
        Host("middle", bridges=(Bridge("br", ("a", "b")),)),
        Host("left", addresses={"eth": ("192.0.2.1/24",)}),
        Host("right", addresses={"eth": ("192.0.2.2/24",)}),
    )
    links = (Link(End("middle", "a"), End("left", "eth")), Link(End("middle", "b"), End("right", "eth")))
    with Lab(Topology("bridge", hosts, links, PAIR.services)) as lab:
        assert greeting(lab, "192.0.2.2").startswith("SSH-2.0-lab_right 192.0.2.1 ")


CHILD = """
import sys, time
from gateway.box import RUN, STATE
from tests.netns.lab.test_lab import PAIR
from gateway.lab.lab import Lab
with Lab(PAIR) as lab:
    for place in (RUN, STATE):
        (place / f"left-{lab.id}-x").mkdir(parents=True)
    print(lab.id, flush=True)
    time.sleep(1000)
"""


def child() -> tuple[subprocess.Popen[str], str, list[int]]:
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    # A shell's background job ignores SIGINT, and so would the child.
    default = "import signal; [signal.signal(n, signal.default_int_handler if n == 2 else 0) for n in (1, 2, 15)]\n"
    started = subprocess.Popen(
        [sys.executable, "-c", default + CHILD], stdout=subprocess.PIPE, text=True, env=environment, cwd=root
    )
    assert started.stdout is not None
    name = started.stdout.readline().strip()
    pids = cgroup.pids(Path(state.load(name).group))
    assert pids
    return started, name, pids


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGHUP))]
)
def test_a_signal_takes_it_down(number: signal.Signals) -> None:
    started, name, pids = child()
    started.send_signal(number)
    started.wait(30)
    assert left_of(name) == []
    assert alive(pids) == []


def test_sigkill_leaves_it_and_the_next_lab_sweeps() -> None:
    started, name, pids = child()
    started.kill()
    started.wait(30)
    assert left_of(name), "nothing to sweep: the test proves nothing"
    with Lab(PAIR):
        assert left_of(name) == []
        assert alive(pids) == []


def test_a_living_owner_is_not_swept() -> None:
    with Lab(PAIR) as lab:
        assert lab.id not in state.sweep()
        greeting(lab, "192.0.2.2")
