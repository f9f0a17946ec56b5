"""What the kernel refuses is tried again; rules that are compiled anew hold up nobody; a keeper stays what it is."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from .conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, keepers, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
SCRIPT = """
import asyncio, errno, signal, time
from pathlib import Path
from gateway import steering
from gateway.cli import main, run
from gateway.core.errors import KernelError
from gateway.kernel.nft.writer import Writer

folder = Path({folder!r})
apply, elements, compile_rules, serve = Writer.apply, Writer.elements, steering.compile_rules, run._serve

def refusing(work):
    def refused(*words):
        if (folder / work.__name__).exists():
            raise KernelError("nft", errno.ENOMEM)
        return work(*words)
    return refused

def slow(*words):
    if (folder / "slow").exists():
        time.sleep(6)
    return compile_rules(*words)

class Box(run.Box):
    def __init__(self, *words):
        super().__init__(*words)
        select = lambda: self.plane.outbounds["group"].select("far")
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, select)

Writer.apply, Writer.elements, steering.compile_rules, run.Box = refusing(apply), refusing(elements), slow, Box
raise SystemExit(main())
"""
"""A gateway to which the kernel refuses what a file in ``folder`` says, to which compiling takes long where one says
so, and whose group SIGUSR1 switches."""


@pytest.fixture
def says(whole: Whole, tmp_path: Path) -> Path:
    whole.program = (sys.executable, "-c", SCRIPT.format(folder=str(tmp_path)))
    return tmp_path


def refused(whole: Whole) -> str:
    return str(whole.command("status").out)


def test_steering_that_was_refused_begins_again(whole: Whole, says: Path) -> None:
    (says / "apply").touch()
    whole.begin("open")
    assert until(lambda: "steering: nft: Cannot allocate memory; tried again in" in refused(whole)), refused(whole)
    assert whole.ask("tcp", whole.client, PROXIED[0]) == KERNEL[0]
    (says / "apply").unlink()
    assert until(whole.steers)
    assert whole.ask("tcp", whole.client, PROXIED[0]) == USERSPACE[0]
    assert "Cannot allocate" not in refused(whole)
    # And where a change is refused later: here that of a name which was learned.
    whole.rules = [{"domain": "site.example", "outbound": "far"}]
    whole.reload("open")
    assert until(lambda: whole.names("192.0.2.53") and whole.ask("tcp", whole.client, DIRECT[0]) == USERSPACE[0])
    (says / "elements").touch()
    (says / "apply").touch()
    whole.client.run(["dig", "+short", "+tries=1", "@192.0.2.53", "other.site.example"])
    assert until(lambda: "learned names: nft: Cannot allocate memory; tried again in" in refused(whole))
    (says / "elements").unlink()
    (says / "apply").unlink()
    assert until(whole.steers)
    assert until(lambda: whole.names("192.0.2.53") and whole.ask("tcp", whole.client, DIRECT[0]) == USERSPACE[0])
    assert "Cannot allocate" not in refused(whole)


def test_a_group_that_switches_holds_up_nobody(whole: Whole, says: Path) -> None:
    whole.outbounds = [{"type": "selector", "tag": "group", "outbounds": ["direct", "far"]}]
    whole.rules = [{"ip_cidr": [DIRECT[0]], "outbound": "group"}]
    whole.start("open")
    assert whole.process is not None
    assert whole.ask("tcp", whole.client, DIRECT[0]) == KERNEL[0]
    (says / "slow").touch()
    whole.process.signal(signal.SIGUSR1)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        since = time.monotonic()
        assert whole.ask("tcp", whole.client, PROXIED[0]) == USERSPACE[0]
        assert time.monotonic() - since < 2, "it stands still"
    assert until(lambda: whole.ask("tcp", whole.client, DIRECT[0]) == USERSPACE[0])
    assert whole.process.running


def test_a_reload_keeps_the_keeper(whole: Whole) -> None:
    whole.start("hold")
    before = keepers(whole)
    assert len(before) == 1
    whole.rules = [{"ip_cidr": list(DIRECT), "outbound": "far"}]
    whole.reload("hold")
    assert until(lambda: whole.ask("tcp", whole.client, DIRECT[0]) == USERSPACE[0])
    assert keepers(whole) == before
    whole.reload("hold", heartbeat="4s")
    assert until(lambda: keepers(whole) != before)
    assert until(lambda: len(keepers(whole)) == 1)
