"""Whatever state a gateway is in: doctor says what of it stands, and after ``down`` the host is as it was."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from gateway.kernel import conntrack, mark
from gateway.lab.snapshot import differences, snapshot

from .conftest import DIRECT, PROXIED, Whole, keepers, until

pytestmark = [pytest.mark.root, pytest.mark.slow]


def running(whole: Whole, fail: str) -> None:
    whole.start(fail)


def stopped(whole: Whole, fail: str) -> None:
    whole.start(fail)
    whole.end(signal.SIGTERM)


def killed(whole: Whole, fail: str) -> None:
    whole.start(fail)
    whole.end(signal.SIGKILL)


def killed_in_start(whole: Whole, fail: str) -> None:
    process = whole.begin(fail)
    assert until(lambda: (whole.folder / "undo.jsonl").exists())
    time.sleep(random.uniform(0, 0.6))
    process.signal(signal.SIGKILL)
    process.wait()


def hung(whole: Whole, fail: str) -> None:
    whole.start(fail, heartbeat="0s")
    assert whole.process is not None
    whole.process.signal(signal.SIGSTOP)


def killed_with_all_of_its_group(whole: Whole, fail: str) -> None:
    """As a service manager does: dnsmasq, the reaper and the keeper too."""
    whole.start(fail)
    whole.open("udp", whole.client, PROXIED[0]).close()
    assert whole.process is not None
    whole.process.kill()


STATES = (running, stopped, killed, killed_in_start, hung, killed_with_all_of_its_group)


def doctor(whole: Whole) -> dict[str, Any]:
    """What it says of instances, and of what stands without one."""
    told = whole.gateway.run([*whole.program, "doctor", "--json"], timeout=60).json()
    return {one["name"]: one for one in told["findings"] if one["name"].startswith(("instance ", "leftover"))}


def settled(whole: Whole) -> dict[str, str]:
    """Once two in a row are equal: links that were just made take a moment to come up."""
    last = snapshot(whole.gateway)
    while (now := snapshot(whole.gateway)) != last or " DOWN " in now["addresses"]:
        last = now
        time.sleep(0.3)
    return last


@pytest.mark.parametrize("fail", ["open", "hold"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_down_leaves_nothing(whole: Whole, fail: str, state: Callable[[Whole, str], None]) -> None:
    name, before = f"instance {whole.instance}", settled(whole)
    assert doctor(whole) == {}
    state(whole, fail)
    assert whole.process is not None
    if state is not killed_in_start:
        assert not {"nft", "routes", "addresses"} & {
            part for part, text in snapshot(whole.gateway).items() if text == before[part]
        }, "what would be left is not seen"
    (found,) = doctor(whole).values()
    assert found["name"] == name
    said, remedy = found["detail"], f"gateway down --instance {whole.instance}"
    assert (found["ok"], found["remedy"]) == ((True, "") if state is running else (False, remedy))
    if state in (running, hung):
        assert f"process {whole.process.pid} {'runs' if state is running else 'hangs'}" in said
    else:
        assert "does not run; of it stands: " in said
        assert "1 nft" in said or state is killed_in_start
    begun = time.monotonic()
    done = whole.command("down")
    assert done.ok, done.err
    assert time.monotonic() - begun < (30 if state is hung else 15)
    if state in (running, hung):
        assert until(lambda: not whole.process.running, 1)  # type: ignore[union-attr]
    left: list[str] = []

    def clean() -> bool:
        left[:] = differences(before, snapshot(whole.gateway))
        return not left

    assert until(clean, 10), left[:8]
    assert keepers(whole) == []
    assert not whole.gateway.call(lambda: conntrack.dump(mark.ROUTE, mark.ROUTE))
    assert doctor(whole) == {}
    assert not whole.folder.exists()


def test_down_of_a_running_gateway_stops_it_in_order(whole: Whole) -> None:
    whole.start("open")
    with whole.open("tcp", whole.client, DIRECT[0]):
        assert whole.command("down").ok
    assert whole.process is not None
    assert whole.process.wait(5).ok, "by SIGTERM"


def test_tables_without_a_journal_are_named(whole: Whole) -> None:
    whole.gateway.run(["nft", "add", "table", "inet", "gateway_base"], check=True)
    try:
        (found,) = doctor(whole).values()
        assert (found["name"], found["remedy"]) == ("leftover", "nft delete table inet gateway_base")
        assert "whose journal is gone" in found["detail"]
    finally:
        whole.gateway.run(["sh", "-c", found["remedy"]], check=True)
