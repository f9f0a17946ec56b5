"""Owners of router-local flows, through the owner map and through /proc."""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import subprocess
import threading
import time
from ipaddress import ip_address

import pytest

from gateway.core.address import Address
from gateway.kernel import owner
from gateway.kernel.bpf import record
from gateway.kernel.bpf.process import ProcessMarks
from gateway.kernel.owner import SocketOwners
from gateway.kernel.plan import ProcessPlan

from .conftest import EITHER, LOADERS

pytestmark = pytest.mark.root
LOCAL = {4: "192.0.2.2", 6: "2001:db8::2"}
HOST = {4: "192.0.2.9", 6: "2001:db8::9"}
ANY = {4: "0.0.0.0", 6: "::"}


def inside(namespace: str, make):
    """``make()`` in a thread that has entered the namespace: netlink sockets stay where they were opened."""
    result = []

    def enter() -> None:
        fd = os.open(namespace, os.O_RDONLY)
        assert ctypes.CDLL(None, use_errno=True).setns(fd, 0x40000000) == 0
        os.close(fd)
        result.append(make())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return result[0]


@pytest.fixture(params=[*EITHER, "proc"])
def owners(request, ground):
    marks = None
    if request.param in LOADERS:
        marks = ProcessMarks(ground.cgroup, ProcessPlan(), netns=ground.cookie(), load=LOADERS[request.param])
    found = inside(ground.namespace, lambda: SocketOwners(marks))
    yield found
    found.close()
    found.close()
    if marks:
        marks.close()


def at(host: str, port: int) -> Address:
    return Address(ip_address(host), port)


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_and_udp(ground, owners, family: int) -> None:
    children = {name: ground.start(ground.copy(name), user=(uid, uid, [uid + 1]))
                for name, uid in (("one", 4001), ("two", 4002))}  # fmt: skip
    host, there = HOST[family], at(HOST[family], 443)
    for name, child in children.items():
        uid = 4001 if name == "one" else 4002
        for label, kind in (("t", "tcp"), ("c", "udp"), ("u", "udp")):
            child.order("open", name=label, kind=kind, family=family)
        child.order("connect", name="t", host=host, port=443)
        child.order("connect", name="c", host=host, port=443)
        child.order("sendto", name="u", host=host, port=443)
        for label, network in (("t", "tcp"), ("c", "udp"), ("u", "udp")):
            port = child.order("where", name=label)["local"][1]
            process = owners.find(network, at(LOCAL[family], port), there)
            assert process is not None, (name, label)
            assert process.path == str(ground.folder / name)
            assert (process.uid, process.gids, process.pid) == (uid, (uid, uid + 1), child.order("pid"))
            assert process.groups == ()
            # The same socket, asked for under a source that only passes through: not ours.
            foreign = at("198.51.100.7" if family == 4 else "2001:db8:7::7", port)
            assert owners.find(network, foreign, there) is None


def test_the_user_is_the_effective_one(ground, owners) -> None:
    child = ground.start(ground.copy("mailer"))
    child.order("effective", uid=4003)
    child.order("open", name="u", kind="udp", local="192.0.2.2", port=7002)
    child.order("connect", name="u", host="192.0.2.9", port=25)
    process = owners.find("udp", at("192.0.2.2", 7002), at("192.0.2.9", 25))
    assert (process.name, process.uid, process.gids[:1]) == ("mailer", 4003, (0,))


def test_groups_by_name(ground, owners) -> None:
    games, daemon = (grp.getgrnam(name).gr_gid for name in ("games", "daemon"))
    child = ground.start(ground.copy("member"), user=(4004, games, [4005, daemon, games]))
    child.order("open", name="u", kind="udp", local="192.0.2.2", port=7004)
    process = owners.find("udp", at("192.0.2.2", 7004), at("192.0.2.9", 1))
    assert process.gids[0] == games
    assert set(process.gids) == {games, daemon, 4005}
    assert process.groups == tuple(
        name for gid in process.gids if (name := {games: "games", daemon: "daemon"}.get(gid))
    )


def test_groups_of_a_process_that_has_ended(ground) -> None:
    """As the kernel knew them when it judged; no more than it keeps."""
    with contextlib.closing(
        ProcessMarks(ground.cgroup, ProcessPlan(gids=((4100, 1),)), netns=ground.cookie(), load=LOADERS["co-re"])
    ) as marks:
        for groups in ([], [4100, 4300], list(range(4100, 4132)), list(range(4100, 4133))):
            child = ground.start(ground.copy("brief"), user=(4005, 4200, groups))
            child.order("open", name="u", kind="udp", local="192.0.2.2", port=7005)
            cookie = child.order("where", name="u")["cookie"]
            child.process.kill()
            child.process.wait(20)
            found = marks.owner(cookie)
            assert found.groups == (tuple(groups) if len(groups) <= record.KEPT else None)


def test_a_socket_outlives_its_maker(ground, owners) -> None:
    """A child has it too: by the record of the maker's path, or by looking for who has it now."""
    child = ground.start(ground.copy("maker"))
    child.order("open", name="u", kind="udp", local="192.0.2.2", port=7003)
    child.order("leave")
    child.process.wait(20)
    assert owners.find("udp", at("192.0.2.2", 7003), at("192.0.2.9", 25)).name == "maker"
    child.process.stdin.close()
    deadline = time.monotonic() + 20
    while (ground.cgroup / "cgroup.procs").read_text():
        assert time.monotonic() < deadline


@pytest.mark.parametrize("family", [4, 6])
def test_forwarded_flow_from_the_port_of_a_listener(ground, owners, family: int) -> None:
    child = ground.start(ground.copy("server"))
    child.order("open", name="l", kind="tcp", family=family, local=ANY[family], port=8080)
    child.order("listen", name="l")
    child.order("open", name="u", kind="udp", family=family, local=ANY[family], port=8080)
    foreign = at("198.51.100.7" if family == 4 else "2001:db8:7::7", 8080)
    for network in ("tcp", "udp"):
        assert owners.find(network, foreign, at(HOST[family], 443)) is None
    assert owners.find("tcp", at(LOCAL[family], 8080), at(HOST[family], 443)) is None
    assert owners.find("udp", at(LOCAL[family], 8080), at(HOST[family], 443)).name == "server"


def test_names_are_not_looked_up(owners) -> None:
    assert owners.find("tcp", Address("example.org", 1), at("192.0.2.9", 2)) is None


def test_owner_outlives_nothing(ground, owners) -> None:
    child = ground.start(ground.copy("brief"))
    child.order("open", name="u", kind="udp", local="192.0.2.2", port=7000)
    child.order("close", name="u")
    assert owners.find("udp", at("192.0.2.2", 7000), at("192.0.2.9", 1)) is None


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_that_becomes_ours(ground, owners, family: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(owner, "monotonic", lambda: now[0])
    new = "198.51.100.8" if family == 4 else "2001:db8:7::8"
    source, there = at(new, 7001), at(HOST[family], 443)
    assert owners.find("udp", source, there) is None
    add = ["ip", "addr", "add", f"{new}/{32 if family == 4 else 128}", "dev", "lo"]
    subprocess.run(["nsenter", f"--net={ground.namespace}", *add, *(["nodad"] if family == 6 else [])], check=True)
    child = ground.start(ground.copy("late"))
    child.order("open", name="u", kind="udp", family=family, local=new, port=7001)
    assert owners.find("udp", source, there) is None, "another host's a moment ago"
    now[0] += owner.KNOWN + 0.1
    assert owners.find("udp", source, there).name == "late"
