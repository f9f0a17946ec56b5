"""T6 and more: SIGKILL at random moments of start, reload, traffic and stop, each policy, as the LAN sees it.

A program of the client dials every 5 ms, TCP and UDP, IPv4 and IPv6, to what the kernel forwards and to what userspace
carries; two TCP connections run through all of it. What is printed, the table of figures, also has a run of sing-box
(tun with auto_redirect) that is killed at the same moments: to be looked at, nothing is asked of it.

``GATEWAY_SEED=N`` draws the same moments again; the seed is printed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from gateway.lab.dials import Dials, Figures, Made, figures, table
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan
from tests import peers

from .conftest import DIRECT, PROXIED, TARGETS, USERSPACE, Whole, echo, ended, leaked, refused, talk, until

PHASES = ("start", "reload", "traffic", "stop")
LONGEST = {"start": 1.5, "reload": 0.3, "traffic": 0.5, "stop": 0.3}
"""Seconds after the phase has begun within which the kill falls; a start takes about one."""
GRACE = 0.5
"""Seconds after the kill from which the policy holds without exception; the kernel takes its time to end a process."""
WATCHED = 1.5
SPLIT = 1.0
"""Seconds that a dial may take."""
few, many = 10, 100

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1500)]
COUNTS = [few, pytest.param(many, marks=pytest.mark.soak)]


@pytest.fixture
def dice() -> random.Random:
    seed = int(os.environ.get("GATEWAY_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"GATEWAY_SEED={seed}")
    return random.Random(seed)


class Kill(NamedTuple):
    """One cycle. ``begun`` is when its phase was, ``killed`` when SIGKILL was sent, ``ended`` when we looked away."""

    phase: str
    begun: float
    killed: float
    ended: float


def moments(dice: random.Random, count: int) -> list[tuple[str, float]]:
    phases = [PHASES[number % len(PHASES)] for number in range(count)]
    dice.shuffle(phases)
    return [(phase, dice.uniform(0, LONGEST[phase])) for phase in phases]


def kill(
    phase: str, delay: float, begin: Callable[[], Process], ready: Callable[[], Process],
    reload: Callable[[Process], None],
) -> Kill:  # fmt: skip
    process = begin() if phase == "start" else ready()
    begun = time.monotonic()
    if phase == "reload":
        reload(process)
    elif phase == "stop":
        process.signal(signal.SIGTERM)
    time.sleep(delay)
    killed = time.monotonic()
    process.signal(signal.SIGKILL)
    process.wait()
    time.sleep(GRACE + WATCHED)
    return Kill(phase, begun, killed, time.monotonic())


def between(made: list[Made], since: float, until: float) -> list[Made]:
    return [one for one in made if since <= one.begun < until]


def report(
    name: str, made: list[Made], kills: list[Kill], wrong: Callable[[Made], bool] = leaked
) -> list[tuple[str, Figures]]:
    """Rows for a table: for each phase from its beginning until we looked away, direct dials and proxied ones. A gap is
    the longest of any cycle."""
    rows = []
    for phase in PHASES:
        for way in ("direct", "proxied"):
            cycles = [
                figures((one for one in between(made, kill.begun, kill.ended) if one.name.startswith(way)), wrong)
                for kill in kills
                if kill.phase == phase
            ]
            if cycles:
                sums = [sum(cycle[column] for cycle in cycles) for column in range(6)]
                worst = [max(cycle[column] for cycle in cycles) for column in (6, 7)]
                rows.append((f"{name} {phase} {way}", Figures(*map(int, sums), *worst)))
    return rows


def first(made: list[Made], killed: float, wanted: Callable[[Made], bool]) -> float:
    """Seconds from the kill to the first dial begun after it that is ``wanted``: answered, or refused."""
    return next((one.begun + one.took - killed for one in made if one.begun >= killed and wanted(one)), 99.0)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("fail", ["open", "closed", "hold"])
def test_t06_whenever_it_is_killed_the_policy_holds(whole: Whole, dice: random.Random, fail: str, count: int) -> None:
    forwards = [{"port": 8080, "to": "192.168.7.2", "to_port": 80}, {"port": 80, "to": "2001:db8:1::2"}]
    kills: list[Kill] = []

    def ready() -> Process:
        whole.start(fail)
        assert whole.process is not None
        return whole.process

    def reload(_: Process) -> None:
        more = {"port": dice.randrange(9000, 9999), "to": "192.168.7.2", "to_port": 80}
        whole.reload(fail, forwards=[*forwards, more])

    process = ready()
    running = [whole.open("tcp", whole.client, site) for site in DIRECT]
    proxied = [whole.open("tcp", whole.client, site) for site in PROXIED]
    try:
        seen = [talk(sock) for sock in running]
        assert [talk(sock) for sock in proxied] == list(USERSPACE)
        with Dials(whole.client, TARGETS) as dials:
            time.sleep(0.5)
            process.signal(signal.SIGKILL)
            process.wait()
            assert all(until(lambda: ended(sock), 2) for sock in proxied)  # noqa: B023
            for phase, delay in moments(dice, count):
                kills.append(kill(phase, delay, lambda: whole.begin(fail), ready, reload))
                assert [talk(sock) for sock in running] == seen, f"a running direct flow broke: {kills[-1]}"
                assert whole.names() == "198.51.100.1", "dnsmasq answers"
    finally:
        for sock in running + proxied:
            sock.close()
    print(f"{count} kills under {fail}, a dial each 5 ms")
    print(table(report(fail, dials.made, kills, misrouted(fail))))
    print_first(fail, dials.made, kills)
    judge(fail, dials.made, kills)


def print_first(fail: str, made: list[Made], kills: list[Kill]) -> None:
    """When a new direct connection is answered, or refused, after the kills that fell into traffic."""
    tcp = [one for one in made if one.name.startswith("direct tcp")]
    wanted = (lambda one: one.said == "refused") if fail == "closed" else (lambda one: one.answered)
    times = [first(tcp, cycle.killed, wanted) for cycle in kills if cycle.phase == "traffic"]
    if times:
        what = "refused" if fail == "closed" else "answered"
        print(f"first {what} after {statistics.median(times) * 1000:.0f} ms, {max(times) * 1000:.0f} ms at most")


def misrouted(fail: str) -> Callable[[Made], bool]:
    """Under ``open`` what the rules proxy is direct while nothing runs: as promised."""
    return lambda made: leaked(made) and (fail != "open" or made.name.startswith("direct"))


def judge(fail: str, made: list[Made], kills: list[Kill]) -> None:
    direct = [one for one in made if one.name.startswith("direct")]
    proxied = [one for one in made if one.name.startswith("proxied")]
    wrong = [one for one in made if misrouted(fail)(one)]
    assert not wrong, f"misrouted: {wrong[:5]}, of {kills}"
    if fail == "open":
        lost = [one for one in direct if not one.answered]
        assert not lost, f"whatever happens: {lost[:5]}"
    for number, cycle in enumerate(kills):
        since, last = cycle.killed + GRACE, cycle.ended - SPLIT
        after = {"direct": between(direct, since, last), "proxied": between(proxied, since, last)}
        assert all(after.values()), "no dials, nothing seen"
        told = f"{number} {cycle}"
        if fail == "open":
            assert all(one.answered for every in after.values() for one in every), told
            assert first(direct, cycle.killed, lambda one: one.answered) < GRACE, told
            continue
        assert all(refused(one) for one in after["proxied"]), told
        if fail == "hold" and any(one.answered for one in after["direct"]):
            # Not where its start was killed between the old keeper's end and its own keeper's beginning.
            assert all(one.answered for one in after["direct"]), told
            if cycle.phase != "start":
                assert not [one for one in between(direct, cycle.begun, last) if not one.answered], told
        else:
            assert fail == "closed" or cycle.phase == "start", told
            assert all(refused(one) for one in after["direct"]), told
            assert first(direct, cycle.killed, lambda one: one.said == "refused") < GRACE, told


def astray(made: Made) -> bool:
    """Of sing-box only what it proxies is known: its own IPv6 flows may have either address of the uplink."""
    return made.name.startswith("proxied") and made.said not in USERSPACE


PEER = Topology(
    "peer",
    (
        Plan(
            "client",
            addresses={"eth0": ("192.168.7.2/24", "2001:db8:1::2/64")},
            routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1")),
        ),
        Plan(
            "gateway",
            addresses={
                "lan0": ("192.168.7.1/24", "2001:db8:1::1/64"),
                "wan0": ("203.0.113.1/24", "203.0.113.9/24", "2001:db8:3::1/64", "2001:db8:3::9/64"),
            },
            routes=(Route("default", "203.0.113.2"), Route("default6", "2001:db8:3::2")),
            sysctls={"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"},
        ),
        Plan(
            "server",
            addresses={
                "eth0": ("203.0.113.2/24", "2001:db8:3::2/64"),
                "lo": tuple(f"{site}/{128 if ':' in site else 32}" for site in DIRECT + PROXIED),
            },
            routes=(Route("default6", "2001:db8:3::1"),),
        ),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
    (echo("server", 7, *DIRECT, *PROXIED),),
)
MASQUERADE = """
table ip nat { chain postrouting { type nat hook postrouting priority srcnat;
    ip saddr 192.168.7.0/24 oifname "wan0" masquerade; }; }
"""
TUN = {
    "log": {"level": "info"},
    "inbounds": [{"type": "tun", "tag": "tun", "address": ["172.19.0.1/30", "fdfe:dcba:9876::1/126"], "mtu": 9000,
                  "auto_route": True, "auto_redirect": True, "stack": "system"}],
    "outbounds": [{"type": "direct", "tag": "direct"},
                  {"type": "direct", "tag": "far", "inet4_bind_address": USERSPACE[0],
                   "inet6_bind_address": USERSPACE[1]}],
    "route": {"rules": [{"ip_cidr": list(PROXIED), "outbound": "far"}], "final": "direct",
              "default_interface": "wan0"},
}  # fmt: skip


@pytest.fixture
def sing_box() -> Iterator[tuple[Lab, str, Any]]:
    try:
        program = str(peers.path("sing-box"))
    except peers.PeerMissing as error:
        pytest.skip(str(error))
    with Lab(PEER) as lab:
        lab.host("gateway").run(["nft", "-f", "-"], stdin=MASQUERADE.encode(), check=True)
        path = lab.folder / "tun.json"
        path.write_text(json.dumps(TUN))
        yield lab, program, path


@pytest.mark.peer("sing-box")
def test_what_sing_box_does_is_printed(sing_box: tuple[Lab, str, Any], dice: random.Random) -> None:
    """Direct flows go through its process too, so that "direct" is what its direct outbound carries."""
    lab, program, path = sing_box
    gateway = lab.host("gateway")

    def begin() -> Process:
        return gateway.popen([program, "run", "-c", path])

    def ready() -> Process:
        process = begin()
        assert until(lambda: "sing-box started" in process.told(20000), 30), process.told()
        return process

    kills, broken = [], 0
    process = ready()
    running = [lab.host("client").socket(family) for family in (socket.AF_INET, socket.AF_INET6)]
    for sock, site in zip(running, DIRECT, strict=True):
        sock.settimeout(2)
        sock.connect((site, 7))
        talk(sock)
    with Dials(lab.host("client"), TARGETS) as dials:
        time.sleep(0.5)
        process.signal(signal.SIGKILL)
        process.wait()
        broken = sum(ended(sock) for sock in running)
        for sock in running:
            sock.close()
        for phase, delay in moments(dice, few):
            kills.append(kill(phase, delay, begin, ready, lambda it: it.signal(signal.SIGHUP)))
    print(f"{few} kills of sing-box {peers.SING_BOX}, a dial each 5 ms; "
          f"of two running direct connections {broken} ended with it")  # fmt: skip
    print(table(report("sing-box", dials.made, kills, astray)))
    dead = [
        one for kill in kills if kill.phase == "traffic" for one in between(dials.made, kill.killed + GRACE, kill.ended)
    ]
    print("dead:", {target.name: sorted({one.said for one in dead if one.name == target.name}) for target in TARGETS})
    assert len(kills) == few
    assert figures(dials.made).answered, "it carried something"
