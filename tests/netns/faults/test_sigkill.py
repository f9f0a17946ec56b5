"""SIGKILL at random moments of start, reload, traffic and stop: the LAN is online within a second, measured from its
hosts; the next start works with whatever was left, and ``down`` puts the router back as it was.

``GATEWAY_SEED=N`` draws the same moments, names and addresses again; the seed is printed.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time

import pytest

from gateway.cli.lab import programs
from gateway.lab.faults import left_over
from gateway.lab.forecast import CheckError
from gateway.lab.probe import Probes
from gateway.lab.stage import FORWARDED, Stage, poll

MOMENTS = 20
PHASES = ("start", "reload", "traffic", "stop")
LONGEST = {"start": 2.0, "reload": 0.3, "traffic": 1.0, "stop": 0.3}
"""Seconds after the phase has begun within which the kill falls; a whole start takes one to two."""
ONLINE = 1.0
WATCHED = 2.5
"""Seconds after the kill up to which every try must be answered."""
KINDS = ("tcp4", "tcp6", "udp4", "udp6", "router names", "far names")

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("demo")]


@pytest.fixture
def seed() -> int:
    found = int(os.environ.get("GATEWAY_SEED", 0)) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"GATEWAY_SEED={found}")
    return found


class Killer:
    """One gateway that is started, disturbed and killed again and again."""

    def __init__(self, stage: Stage, dice: random.Random, before: dict[str, str]) -> None:
        self.stage = stage
        self.dice = dice
        self.before = before
        self.online: dict[str, float] = {}

    def begin(self) -> None:
        """Start without waiting for anything."""
        files = [word for path in self.stage.write() for word in ("-c", str(path))]
        command = [sys.executable, "-m", "gateway", "run", *files, "--instance", self.stage.instance]
        self.stage.gateway = self.stage.lab.host("router").popen(command)

    def ready(self) -> None:
        """Start, and wait until all of it runs."""
        self.begin()
        assert self.stage.gateway is not None
        log = self.stage.gateway.err
        poll(lambda: "started; control socket" in log.read_text(), f"the gateway does not start: {log}")

    def disturb(self, phase: str) -> None:
        stage = self.stage
        if phase == "start":
            self.begin()
            return
        self.ready()
        if phase == "reload":
            forwards = stage.configuration()["gateway"]["forwards"][:1]
            port = self.dice.randrange(FORWARDED + 1, FORWARDED + 500)
            forwards.append({"network": "tcp", "port": port, "to": stage.home.lan2.ipv4, "to_port": 8080})
            stage.changes["forwards"] = forwards
            stage.write()
            stage.signal(signal.SIGHUP)
        elif phase == "stop":
            stage.signal(signal.SIGTERM)
        # traffic: the probes are it, proxied ones among them

    def kill(self, phase: str, probes: Probes) -> None:
        """Kill at a random moment of ``phase``. Raises CheckError where the LAN noticed for over a second."""
        self.disturb(phase)
        delay = self.dice.uniform(0, LONGEST[phase])
        time.sleep(delay)
        gateway = self.stage.gateway
        assert gateway is not None
        killed = time.monotonic()
        gateway.signal(signal.SIGKILL)
        gateway.wait()
        time.sleep(WATCHED)
        try:
            for kind in KINDS:
                gap = probes.judged(kind, killed, ONLINE, killed + WATCHED)
                self.online[kind] = max(self.online.get(kind, 0.0), gap)
        except CheckError as error:
            raise CheckError(f"{phase}, killed after {delay:.3f} s: {error}") from error

    def down(self, why: str, repair: bool = False) -> None:
        if repair:
            done = self.stage.lab.host("router").run([sys.executable, "-m", "gateway", "doctor", "--repair"])
            # A start may be killed before it has done anything.
            assert why == "start" or f"{self.stage.instance}: undone" in done.out, done.out + done.err
        else:
            done = self.stage.command("down")
        assert done.ok, done.err
        left: list[str] = []
        with contextlib.suppress(CheckError):
            poll(lambda: not left_over(self.stage, self.before, left), "", 10)
        assert not left, f"{why}: {left[:8]}"


def test_the_lan_is_online_whenever_the_gateway_is_killed(seed: int) -> None:
    dice = random.Random(seed)
    stage = Stage(programs(), seed)
    failures = []
    with stage.lab:
        stage.plug()
        killer = Killer(stage, dice, stage.settled())
        phases = [PHASES[number % len(PHASES)] for number in range(MOMENTS)]
        dice.shuffle(phases)
        killer.ready()
        stage.wan4 = poll(stage.lease, "no lease")
        with Probes(stage) as probes:
            # Who was never online cannot stay it; with the first lease there are names at once.
            poll(lambda: probes.last("tcp4"), "never online")
            assert stage.gateway is not None
            stage.gateway.stop()
            for number, phase in enumerate(phases):
                try:
                    killer.kill(phase, probes)
                except CheckError as error:
                    failures.append(f"{number}: {error}")
        worst = ", ".join(f"{kind} {gap * 1000:.0f} ms" for kind, gap in killer.online.items())
        print(f"{MOMENTS} kills; longest until online: {worst}")
        # The next start goes on with what was left, and clears it when it is told to.
        killer.down("after a kill")
        killer.ready()
        assert stage.gateway is not None
        assert stage.gateway.stop().ok
        killer.down("after a clean stop")
    assert not failures, "\n".join([f"GATEWAY_SEED={seed}", *failures])


@pytest.mark.parametrize("phase", PHASES)
def test_down_and_repair_after_a_kill_leave_nothing(seed: int, phase: str) -> None:
    """Without a start in between, and from a router that was bare before: start may be killed half-way."""
    dice = random.Random(seed)
    stage = Stage(programs(), seed)
    with stage.lab:
        stage.plug()
        killer = Killer(stage, dice, stage.settled())
        for repair in (False, True):
            killer.disturb(phase)
            time.sleep(dice.uniform(0, LONGEST[phase]))
            assert stage.gateway is not None
            stage.gateway.signal(signal.SIGKILL)
            stage.gateway.wait()
            killer.down(phase, repair)
