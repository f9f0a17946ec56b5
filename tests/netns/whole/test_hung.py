"""A gateway that stands still counts as dead: within five seconds its policy holds, measured by dials every 5 ms."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from gateway.lab.dials import Dials, Made, figures, table

from .conftest import ROOT, TARGETS, Whole, keepers, leaked, refused, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
PROMISED = 5.0
"""Seconds: three without a sign of life, half a one for the last words, and what is left for a busy machine."""
WATCHED = 3.0
BLOCK = """
import signal, time
from gateway.cli import main
from gateway.cli import run
serve = run._serve
async def blocked(*words):
    import asyncio
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, time.sleep, 600)
    return await serve(*words)
run._serve = blocked
raise SystemExit(main())
"""
"""A gateway whose event loop SIGUSR1 blocks, as a bug or a file system that hangs would."""


@pytest.fixture
def blocked(whole: Whole) -> Whole:
    whole.program = (sys.executable, "-c", BLOCK)
    return whole


def gone(whole: Whole) -> bool:
    assert whole.process is not None
    return not whole.process.running


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGUSR1], ids=["stopped", "blocked"])
@pytest.mark.parametrize("fail", ["open", "closed", "hold"])
def test_a_hung_gateway_is_dead_to_its_lan(blocked: Whole, fail: str, how: signal.Signals) -> None:
    whole = blocked
    whole.start(fail)
    assert whole.process is not None
    with Dials(whole.client, TARGETS) as dials:
        time.sleep(1)
        hung = time.monotonic()
        whole.process.signal(how)
        assert until(lambda: gone(whole), PROMISED), "nobody has noticed"
        dead = time.monotonic() - hung
        time.sleep(max(0.0, hung + PROMISED + WATCHED - time.monotonic()))
    named = {way: [made for made in dials.made if made.name.startswith(way)] for way in ("direct", "proxied")}
    before = [made for made in dials.made if made.begun < hung - 0.2]
    since, last = hung + PROMISED, hung + PROMISED + WATCHED - 1
    after = {way: [made for made in every if since < made.begun < last] for way, every in named.items()}
    hanging = [made for made in named["direct"] if hung < made.begun < hung + dead - 0.5]
    print(f"{fail}, {how.name}: dead after {dead:.1f} s")
    print(table([("before", figures(before)), ("direct, hung", figures(hanging)),
                 *((f"{way} afterwards", figures(every)) for way, every in after.items())]))  # fmt: skip
    assert before
    assert all(made.answered for made in before)
    assert after["direct"]
    assert after["proxied"]
    assert hanging
    lost = [made for made in hanging if not made.answered]
    assert not lost, f"what the kernel carries does not care: {lost[:5]}"
    works = {"open": ("direct", "proxied"), "closed": (), "hold": ("direct",)}[fail]
    for way, every in after.items():
        wrong = [made for made in every if not (made.answered if way in works else refused(made))]
        assert not wrong, wrong[:5]
    if fail != "open":
        assert not [made for made in dials.made if leaked(made)][:5]
    assert len(keepers(whole)) == (fail == "hold")
    if how == signal.SIGUSR1:
        assert "Fatal Python error: Aborted" in whole.process.err.read_text(), "where it hung"


def silence(made: list[Made]) -> int:
    return sum(one.said == "silent" for one in made)


def test_without_a_heartbeat_it_may_hang(whole: Whole) -> None:
    whole.start("open", heartbeat="0s")
    assert whole.process is not None
    whole.process.signal(signal.SIGSTOP)
    with Dials(whole.client, TARGETS) as dials:
        time.sleep(2 * PROMISED)
        assert not gone(whole)
    assert silence(dials.made) > 100, "so that this is what the heartbeat is for"
    whole.process.signal(signal.SIGCONT)
    assert whole.steers()
    # It is switched on by a reload, and off.
    whole.reload("open", heartbeat="2s")
    assert until(lambda: watching(whole) == ["2"])
    whole.reload("open", heartbeat="0s")
    assert until(lambda: watching(whole) == ["0"])


def watching(whole: Whole) -> list[str]:
    """Seconds of silence that each watcher of the gateway allows."""
    assert whole.process is not None
    found = []
    for pid in watchers(whole):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        found.append(words[-4].decode())
    return found


def watchers(whole: Whole) -> list[int]:
    assert whole.process is not None
    children = Path(f"/proc/{whole.process.pid}/task/{whole.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"watcher.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_whoever_kills_the_watcher_gets_another(whole: Whole) -> None:
    whole.start("open")
    (first,) = watchers(whole)
    os.kill(first, signal.SIGKILL)
    assert until(lambda: watchers(whole) not in ([], [first]))
    time.sleep(1.5)  # a beat
    assert whole.process is not None
    whole.process.signal(signal.SIGSTOP)
    assert until(lambda: gone(whole), PROMISED + 1)


def test_a_machine_that_stood_still_is_no_reason(whole: Whole) -> None:
    """Both were stopped, as in a suspended virtual machine whose clock goes on: the watcher wakes first."""
    whole.start("open")
    assert whole.process is not None
    (watcher,) = watchers(whole)
    for pid in (whole.process.pid, watcher):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2 * PROMISED)
    os.kill(watcher, signal.SIGCONT)
    time.sleep(1)
    os.kill(whole.process.pid, signal.SIGCONT)
    time.sleep(2)
    assert not gone(whole)
    assert whole.steers()


TRACE = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
assert libc.ptrace(0x4206, pid, None, None) == 0, ctypes.get_errno()  # PTRACE_SEIZE
assert libc.ptrace(0x4207, pid, None, None) == 0, ctypes.get_errno()  # PTRACE_INTERRUPT
os.waitpid(pid, 0x40000000)
print("holds", flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_a_debugger_may_hold_it(whole: Whole) -> None:
    whole.start("open")
    assert whole.process is not None
    done = whole.gateway.run([sys.executable, "-c", TRACE, str(whole.process.pid), str(2 * PROMISED)], cwd=ROOT)
    assert re.match("holds", done.out), done.err
    assert not gone(whole)
    assert until(whole.steers)
