"""``run --trial``: who is locked out is let in again, to the byte; who proves that he is not keeps what he has made.

The gateway's host is set up by hand before, and somebody works on it over SSH: from the LAN, and from the WAN, which
the gateway closes.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.kernel.journal import NAME
from gateway.lab.process import Process
from gateway.lab.snapshot import snapshot
from gateway.service.control import ask
from gateway.trial import UNCONFIRMED
from tests.sshd import Sshd

from .conftest import DIRECT, KERNEL, ROOT, Whole, until

pytestmark = [pytest.mark.root, pytest.mark.peer("sshd")]
LAN, WAN = "192.168.7.1", "203.0.113.1"
SET_UP = f"""
ip link set lan0 up
ip link set wan0 up
ip addr add {LAN}/24 brd + dev lan0
ip addr add 192.168.77.1/24 dev lan0
ip addr add {WAN}/24 dev wan0
ip addr add 203.0.113.5/24 dev wan0 valid_lft forever preferred_lft 0
ip addr add 203.0.113.9/24 dev wan0 metric 77
ip -6 addr add 2001:db8:3::1/64 dev wan0 nodad
ip -6 addr add 2001:db8:3::9/64 dev wan0
ip route add default via 203.0.113.2 dev wan0 metric 50
ip route add default via 203.0.113.3 dev wan0 metric 700 proto static
ip route add 192.0.2.0/24 metric 5 nexthop via 203.0.113.2 dev wan0 weight 2 nexthop via 192.168.7.2 dev lan0 weight 1
ip route add blackhole 192.0.2.128/25
ip -6 route add default via 2001:db8:3::2 dev wan0 metric 99
ip -6 route add 2001:db8:77::/48 via 2001:db8:3::2 dev wan0 table 77
ip rule add from 192.168.77.0/24 lookup 77 priority 777
ip -6 rule add not fwmark 0x7/0xff lookup 77 priority 778
nft add table inet others
nft add chain inet others c '{{ type filter hook input priority 5; }}'
nft add rule inet others c tcp dport 23 counter drop
sysctl -q -w net.ipv4.conf.lan0.forwarding=1 net.ipv6.conf.wan0.accept_ra=0
"""
CLEAR = """
for family in -4 -6; do
    ip $family route flush table main proto boot
    ip $family route flush table main proto static
done
ip addr flush dev lan0 scope global
ip addr flush dev wan0 scope global
ip route flush table 77
ip route del blackhole 192.0.2.128/25
ip -6 route flush table 77
ip rule del priority 777
ip -6 rule del priority 778
nft delete table inet others
sysctl -q -w net.ipv4.conf.lan0.forwarding=0
ip link set lan0 up
ip link set wan0 up
"""
SECONDS = 12
"""Of a trial that ends: someone who is locked out has tried for five of them, on a machine that may be busy."""


class Managed:
    """A gateway's host that somebody has set up, and works on."""

    def __init__(self, whole: Whole, sshd: Sshd) -> None:
        self.whole = whole
        self.sshd = sshd
        done = whole.gateway.run(["sh", "-e", "-c", SET_UP])
        assert done.ok, done.err

    def dump(self) -> dict[str, str]:
        """All that the gateway could have changed."""
        found = snapshot(self.whole.gateway)
        found["details"] = self.whole.gateway.run(["sh", "-c", "ip -d addr; ip -d rule; ip -6 -d rule"]).out
        return found

    def settled(self) -> dict[str, str]:
        last: dict[str, str] = {}

        def same() -> bool:
            nonlocal last
            time.sleep(0.3)
            before, last = last, self.dump()
            return before == last

        assert until(same, 30)
        return last

    def begin(self, seconds: int = SECONDS, fail: str = "open", **more: Any) -> Process:
        path = self.whole.write(fail, **more)
        words = [*self.whole.program, "run", "-c", path, "--instance", self.whole.instance, "--trial", str(seconds)]
        self.whole.process = self.whole.gateway.popen(words, cwd=ROOT)
        return self.whole.process

    def start(self, seconds: int = SECONDS, fail: str = "open", **more: Any) -> Process:
        process = self.begin(seconds, fail, **more)
        assert until(self.whole.steers, 30), process.told()
        return process

    def comes_in(self, host: str, address: str) -> bool:
        return self.sshd.run(self.whole.lab.host(host), address, "true").ok

    @property
    def confirm(self) -> str:
        words = [sys.executable, "-m", "gateway", "confirm", "--instance", self.whole.instance]
        return f"cd {ROOT} && {shlex.join(words)}"

    def status(self) -> dict[str, Any]:
        return ask(self.whole.folder, {"command": "status"})


@pytest.fixture
def managed(whole: Whole) -> Iterator[Managed]:
    sshd = Sshd(whole.lab, whole.gateway)
    try:
        yield Managed(whole, sshd)
    finally:
        if whole.process is not None and whole.process.running:
            whole.end(signal.SIGKILL)
        until(lambda: not rescues(whole), 30)
        sshd.close()
        whole.command("down")
        whole.gateway.run(["sh", "-c", CLEAR])


def rescues(whole: Whole) -> list[int]:
    """Children that hold the deadline, or undo."""
    word = str(whole.folder).encode()
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if folder.name.isdecimal() and word in words and (b"deadline.py" in words or b"gateway.trial" in words):
            found.append(int(folder.name))
    return found


def as_before(managed: Managed, before: dict[str, str]) -> None:
    """To the byte, and nothing of the gateway runs. (What was killed may take a moment to be gone.)"""
    until(lambda: managed.dump() == before, 10)
    after = managed.dump()
    assert {name: text for name, text in after.items() if text != before[name]} == {}, before
    assert not managed.whole.folder.exists()
    assert rescues(managed.whole) == []


def test_who_is_locked_out_is_let_in_again(managed: Managed) -> None:
    """The WAN is closed, and it was the way of whoever changed it."""
    whole = managed.whole
    assert managed.comes_in("server", WAN)
    before = managed.settled()
    begun = time.monotonic()
    process = managed.start()
    assert not managed.comes_in("server", WAN), "he is not locked out: this shows nothing"
    running = managed.dump()
    assert {name for name in before if running[name] == before[name]} <= {"bpf"}
    assert "on trial" in whole.command("status").out
    assert 0 < managed.status()["trial"] < SECONDS
    result = process.wait(SECONDS + 20)
    assert time.monotonic() - begun < SECONDS + 10
    assert result.code == UNCONFIRMED, result.err
    assert f"nobody confirmed it within {SECONDS} s" in result.err
    assert "all is as it was before the trial" in result.err
    assert managed.comes_in("server", WAN)
    as_before(managed, before)


@pytest.mark.slow
def test_who_comes_in_again_keeps_it(managed: Managed) -> None:
    """From the old connection it is refused, also in a new session of it; and where no connection can be told."""
    whole, sshd = managed.whole, managed.sshd
    with sshd.session(whole.client, LAN) as old:
        process = managed.start(30, open_tcp=[22])
        said = sshd.run(whole.client, LAN, managed.confirm, old)
        assert said.code == 1
        assert "open a second connection and run `gateway confirm` there" in said.err
        assert whole.client.addresses[0] in said.err
        background = sshd.folder / "said"
        inner = shlex.quote(f"({managed.confirm}) > {background} 2>&1")
        for way in (
            f"TMUX_TMPDIR={sshd.folder} tmux -L lab -f /dev/null new-session -d {inner}",
            f"setsid -f sh -c {inner}",
        ):
            done = sshd.run(whole.client, LAN, way)
            assert done.ok, done.err
            assert until(lambda: background.exists() and "--here" in background.read_text()), way
            background.unlink()
        assert "trial" in managed.status()
        # A change of the configuration is no part of it.
        assert "a trial is on" in ask(whole.folder, {"command": "reload"})["error"]
        said = sshd.run(whole.lab.host("server"), WAN, managed.confirm)
        assert said.ok, said.err
        assert "confirmed" in said.out
        assert until(lambda: not rescues(whole))
        assert "trial" not in managed.status()
        again = sshd.run(whole.client, LAN, managed.confirm)
        assert "no trial is on" in again.err
    time.sleep(max(0.0, 31 - managed.status()["uptime"]))
    assert process.running
    assert whole.ask("tcp", whole.client, DIRECT[0]) == KERNEL[0]
    assert ask(whole.folder, {"command": "reload"})["ok"]
    process.signal(signal.SIGTERM)
    assert process.wait(20).code == 0
    assert whole.tables() == {"gateway_base", "others"}, "a plain router, as ever"


@pytest.mark.slow
def test_a_person_at_the_machine_may_say_so(managed: Managed) -> None:
    managed.start(20)
    refused = managed.whole.command("confirm")
    assert refused.code == 1
    assert managed.whole.command("confirm", "--here").ok
    assert "trial" not in managed.status()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "fail", "heartbeat"),
    [
        (signal.SIGKILL, "open", "3s"), (signal.SIGKILL, "hold", "3s"), (signal.SIGSTOP, "closed", "3s"),
        (signal.SIGSTOP, "open", "0s"),
    ],
)  # fmt: skip
def test_a_gateway_that_dies_or_hangs_is_undone(
    managed: Managed, how: signal.Signals, fail: str, heartbeat: str
) -> None:
    """At once where it is dead; after its heartbeat, or the deadline, where it hangs."""
    before = managed.settled()
    watched = how is signal.SIGKILL or heartbeat != "0s"
    process = managed.start(60 if watched else SECONDS, fail, heartbeat=heartbeat)
    process.signal(how)
    assert until(lambda: not managed.whole.folder.exists(), 20 if watched else SECONDS + 30)
    assert not process.running
    as_before(managed, before)
    assert managed.comes_in("server", WAN)
    assert "nobody had confirmed its trial: it is undone" in process.err.read_text()


@pytest.mark.slow
def test_a_deadline_that_nobody_is_left_to_heed_is_the_next_one_s_affair(managed: Managed) -> None:
    """Gateway and child are both killed, with the whole cgroup; down finds what the trial had written down."""
    before = managed.settled()
    process = managed.start(60)
    for pid in (*rescues(managed.whole), process.pid):
        os.kill(pid, signal.SIGSTOP)
    for pid in (*rescues(managed.whole), process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait(10)
    done = managed.whole.command("down")
    assert done.ok, done.err
    as_before(managed, before)


@pytest.mark.slow
def test_the_trial_ends_with_the_child_that_holds_its_deadline(managed: Managed) -> None:
    before = managed.settled()
    process = managed.start(60)
    os.kill(rescues(managed.whole)[0], signal.SIGKILL)
    result = process.wait(20)
    assert result.code == UNCONFIRMED
    assert "the child that holds the deadline of the trial was killed" in result.err
    as_before(managed, before)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "down"])
def test_whoever_ends_it_unconfirmed_undoes_it(managed: Managed, how: str) -> None:
    before = managed.settled()
    process = managed.start(60)
    if how == "down":
        assert managed.whole.command("down").ok
    else:
        process.signal(signal.SIGTERM)
    assert process.wait(20).code == UNCONFIRMED
    as_before(managed, before)


def test_a_start_that_fails_on_trial_leaves_nothing(managed: Managed) -> None:
    before = managed.settled()
    process = managed.begin(60, inbound="nobody")
    result = process.wait(20)
    assert result.code == 1
    assert 'no tproxy inbound has the tag "nobody"' in result.err
    as_before(managed, before)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["deadline", "SIGKILL"])
def test_the_plain_router_of_an_older_run_stands_again(managed: Managed, ends: str) -> None:
    """Other addresses, other forwards, another policy: it is that of before, and so is what down undoes."""
    whole = managed.whole
    whole.start("closed", open_tcp=[22])
    whole.end(signal.SIGTERM)
    before, journal = unnumbered(managed.settled()), (whole.folder / NAME).read_text()
    lans = [{"interface": "lan0", "address": ["192.168.7.1/24", "192.168.8.1/24"]}]
    uplinks = [{"interface": "wan0", "static": {"address": ["203.0.113.1/24"], "gateway": ["203.0.113.2"]}}]
    process = managed.start(SECONDS, "open", lans=lans, uplinks=uplinks, forwards=[])
    assert unnumbered(managed.dump()) != before
    if ends == "SIGKILL":
        process.signal(signal.SIGKILL)
    process.wait(SECONDS + 20)
    assert until(lambda: not rescues(whole), 30)
    assert until(lambda: unnumbered(managed.dump()) == before, 10) or unnumbered(managed.dump()) == before
    assert (whole.folder / NAME).read_text() == journal
    assert managed.comes_in("server", WAN)
    assert whole.names() == DIRECT[0]
    assert whole.command("down").ok
    assert whole.tables() == {"others"}
    assert not managed.whole.folder.exists()


def unnumbered(found: dict[str, str]) -> dict[str, str]:
    """Without the numbers that the kernel gives to what is made anew."""
    rows = [line.partition(" ")[2] for line in found["processes"].splitlines()]
    nft = "\n".join(part for part in found["nft"].split(",") if "handle" not in part)
    return {**found, "processes": "\n".join(sorted(rows)), "nft": nft}


@pytest.mark.slow
def test_the_child_is_small(managed: Managed, figure: Any) -> None:
    managed.start(60)
    (pid,) = rescues(managed.whole)
    text = Path(f"/proc/{pid}/status").read_text()
    size = int(text.partition("VmRSS:")[2].split()[0])
    figure(f"the child that holds the deadline has {size / 1024:.0f} MB")
    assert size < 16 * 1024
    files = {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
    assert not any(name.startswith("socket:") for name in files), files
    assert subprocess.run(["ps", "-o", "sid=", "-p", str(pid)], capture_output=True, text=True).stdout.strip() == str(
        pid
    )
