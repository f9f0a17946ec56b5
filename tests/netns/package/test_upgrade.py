"""The installed package runs a gateway, and is upgraded, restarted and removed below it.

There is no service manager here: the test does what the unit has it do. With systemd: test_guest.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.lab import Lab
from gateway.lab.snapshot import differences, snapshot
from tests.debian import INSTALL, bare, command, ready
from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, until
from tests.netns.whole.test_nothing_left import settled

from .conftest import NEXT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("bootstrap")]
PAUSE = 2.0
"""Seconds of a stream that count as a gap: a retransmission or two of TCP are none."""


class Stream:
    """A bulk flow over one connection to the echo server, and back, some 3 MB/s. ``gap``: the longest time without
    anything received."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.received = 0
        self.gap = 0.0
        self.error = ""
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self._end.wait(0.005):
                self._sock.sendall(bytes(1 << 14))
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.error = str(error)

    def _receive(self) -> None:
        last = time.monotonic()
        try:
            while data := self._sock.recv(1 << 16):
                self.received += len(data)
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now
        except OSError as error:
            self.error = str(error)

    def close(self) -> None:
        """Sees it to its end."""
        self._end.set()
        for thread in self._threads:
            thread.join(20)
        self._sock.close()


@pytest.fixture(scope="module")
def tree(package: Path, rebuilt: Path) -> Iterator[Path]:
    """With the package installed. Its path is short, as that of a control socket has to be."""
    folder = Path(tempfile.mkdtemp(prefix="gw"))
    try:
        made = bare(folder)
        for archive in (package, rebuilt):
            shutil.copy(archive, made / "root")
        ready(made, "apt-get", "-qq", "update")
        ready(made, *INSTALL, "install", f"/root/{package.name}")
        yield made
    finally:
        shutil.rmtree(folder)


class Installed(Whole):
    """The gateway of the tree, on the lab's gateway."""

    def __init__(self, lab: Lab, tree: Path) -> None:
        super().__init__(lab)
        self.tree = tree
        self.folder = tree / "run/gateway" / self.instance

    def inside(self, *words: str) -> Any:
        return self.gateway.run(command(self.tree, *words), timeout=300)

    def begin(self, fail: str, **more: Any) -> Any:
        value = json.loads(self.write(fail, **more).read_text())
        (self.tree / "etc/gateway/gateway.json").write_text(json.dumps(value))
        words = ("gateway", "run", "-C", "/etc/gateway", "-D", "/var/lib/gateway", "--instance", self.instance)
        (self.tree / "var/lib/gateway").mkdir(exist_ok=True)
        self.process = self.gateway.popen(command(self.tree, *words))
        return self.process


@pytest.fixture
def installed(lab: Lab, tree: Path) -> Iterator[Installed]:
    found = Installed(lab, tree)
    yield found
    if found.process is not None and found.process.running:
        found.end(signal.SIGKILL)
    if (tree / "usr/bin/gateway").exists():
        found.inside("gateway", "down", "--instance", found.instance)


def version(installed: Installed) -> str:
    return str(installed.inside("dpkg-query", "-W", "-f=${Version}", "gateway-router").out)


def test_an_upgrade_drops_no_direct_flow_and_removal_leaves_nothing(
    installed: Installed, package: Path, rebuilt: Path
) -> None:
    before = settled(installed)
    installed.start("open")
    assert installed.ask("tcp", installed.client, PROXIED[0]) == USERSPACE[0]
    old = version(installed)
    streams = [Stream(installed.open("tcp", installed.client, site)) for site in DIRECT]
    try:
        time.sleep(1)
        done = installed.inside(*INSTALL, "install", f"/root/{rebuilt.name}")
        assert done.ok, done.err
        assert old != NEXT
        assert version(installed) == NEXT
        assert installed.steers(), "the old one runs on while its files are replaced"
        assert installed.ask("tcp", installed.client, PROXIED[0]) == USERSPACE[0]
        # What systemd does at a restart.
        installed.end(signal.SIGTERM)
        assert installed.ask("tcp", installed.client, PROXIED[0]) == KERNEL[0], "between the two a plain router"
        assert installed.ask("tcp", installed.client, DIRECT[0]) == KERNEL[0]
        installed.start("open")
        assert installed.ask("tcp", installed.client, PROXIED[0]) == USERSPACE[0]
        time.sleep(1)
    finally:
        for stream in streams:
            stream.close()
    for stream in streams:
        assert stream.error == ""
        assert stream.received > 5_000_000
        assert stream.gap < PAUSE
    # As one that is not running any more, which is the harder case.
    installed.end(signal.SIGKILL)
    assert "gateway_base" in installed.tables()
    done = installed.inside("dpkg", "--purge", "gateway-router")
    assert done.ok, done.err
    assert installed.tables() == set()
    left: list[str] = []

    def clean() -> bool:
        left[:] = differences(before, snapshot(installed.gateway))
        return not left

    assert until(clean, 10), left[:8]
    served = f"--conf-file=/run/gateway/{installed.instance}/"
    assert not subprocess.run(["pgrep", "-f", "--", served], capture_output=True, check=False).stdout
    for place in ("etc/gateway", "var/lib/gateway", "run/gateway", "usr/lib/gateway"):
        assert not [str(one) for one in (installed.tree / place).rglob("*") if not one.is_dir()], done.out
        assert not (installed.tree / place).exists(), done.out + done.err
