"""``gateway run`` below a service manager's socket, as a process: what it says of its start, reloads and end."""

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

from tests.instances import instance
from tests.interop.harness import free_port

ROOT = Path(__file__).resolve().parents[2]


class Service:
    def __init__(self, folder, instance):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(folder / "notify"))
        self.sock.settimeout(20)
        self.file = folder / "config.json"
        self.instance = instance
        self.said = []

    def write(self, **more):
        inbound = {"type": "mixed", "listen": "127.0.0.1", "listen_port": free_port()}
        self.file.write_text(json.dumps({"inbounds": [inbound], **more}))

    def command(self, word, *words):
        return [sys.executable, "-m", "gateway", word, "--instance", self.instance, *words]

    def start(self, *words, watchdog=0):
        told = {"NOTIFY_SOCKET": self.sock.getsockname(), "PYTHONPATH": str(ROOT)}
        told |= {"WATCHDOG_USEC": str(watchdog)} if watchdog else {}
        self.process = subprocess.Popen(
            self.command("run", "-c", str(self.file), *words), env={**os.environ, **told}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def hear(self, word):
        """What was said up to the datagram that has ``word``; that one."""
        while True:
            told = dict(line.split("=", 1) for line in self.sock.recv(4096).decode().split("\n"))
            self.said.append(told)
            if word in told:
                return told

    def call(self, word):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(self.command(word), env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def service(tmp_path):
    with instance(free_port()) as name:
        found = Service(tmp_path, name)
        with found.sock:
            yield found
        with contextlib.suppress(AttributeError):
            found.process.kill()
            found.process.communicate()


@pytest.mark.root
def test_start_reload_and_stop(service):
    service.write()
    service.start()
    assert service.hear("READY")["STATUS"] == "runs; nothing of this host is changed"
    assert "READY" not in {word for told in service.said[:-1] for word in told}
    service.write(log={"level": "debug"})
    done = service.call("reload")
    assert done.returncode == 0, done.stderr
    assert int(service.hear("RELOADING")["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    service.hear("READY")
    service.process.send_signal(signal.SIGHUP)
    service.hear("RELOADING")
    service.hear("READY")
    service.process.terminate()
    service.hear("STOPPING")
    assert service.process.wait(20) == 0


@pytest.mark.root
def test_a_reload_that_is_refused_is_told(service):
    service.write()
    service.start()
    service.hear("READY")
    service.file.write_text('{"route": {"finale": "direct"}}')
    done = service.call("reload")
    assert done.returncode == 1
    assert "configuration kept: " in done.stderr
    assert "route.finale" in done.stderr
    service.hear("RELOADING")
    assert "route.finale" in service.hear("READY")["STATUS"], "it is ready, with what it had"
    service.write()
    assert service.call("reload").returncode == 0
    service.hear("RELOADING")
    assert "kept" not in service.hear("READY")["STATUS"]


@pytest.mark.root
def test_the_watchdog_hears_the_loop(service):
    service.write()
    service.start(watchdog=600_000)
    service.hear("READY")
    times = []
    for _ in range(5):
        service.hear("WATCHDOG")
        times.append(time.monotonic())
    assert times[-1] - times[0] < 4 * 0.6, "each in time"
    service.process.send_signal(signal.SIGSTOP)
    service.sock.settimeout(0.6)
    with pytest.raises(TimeoutError):
        [service.hear("WATCHDOG") for _ in range(100)]
    service.process.send_signal(signal.SIGCONT)
    service.sock.settimeout(20)
    service.hear("WATCHDOG")


def test_a_wrong_configuration_is_told_by_the_exit_status(service):
    service.file.write_text('{"route": {"finale": "direct"}}')
    service.start()
    _, said = service.process.communicate(timeout=30)
    assert service.process.returncode == 78
    assert said.splitlines() == [line for line in said.splitlines() if "route.finale" in line]


@pytest.mark.root
def test_minimal_says_what_it_takes(service):
    service.write()
    service.start("--minimal")
    service.hear("READY")
    disk = service.process.stdout.readline()
    memory = service.process.stdout.readline()
    assert disk.startswith("on disk ")
    assert "gateway " in disk
    assert "uvloop" not in disk
    assert memory.startswith("in memory ")
    loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "uvloop" not in loaded
    assert "_re2" not in loaded
    assert "libbpf" not in loaded
