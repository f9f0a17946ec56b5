"""``gateway run`` and sing-box as processes with one configuration and a folder of their own, and what may be asked of
ours while it runs."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from gateway.box import RUN, STATE
from gateway.service.control import ask
from tests import peers
from tests.interop.harness import DEADLINE, program, socks_connect

ROOT = Path(__file__).resolve().parents[2]


class Ours:
    """A gateway of ours; ``port`` is what it listens at."""

    def __init__(self, process, instance, config):
        self.process = process
        self.instance = instance
        self.config = config

    def ask(self, command, **more):
        answer = ask(RUN / self.instance, {"command": command, **more})
        assert answer.pop("ok"), answer
        return answer

    def cli(self, *words):
        """What the command prints; its exit status is 0."""
        command = [sys.executable, "-m", "gateway", *words, "--instance", self.instance]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def log(self):
        return self.process.log.read_text()


@contextlib.contextmanager
def ours(config, ready, folder, instance="", env=()):
    """``folder`` is where relative paths start; what it keeps elsewhere is gone afterwards, but for that of an
    ``instance`` that is named."""
    name = instance or f"test-{os.getpid()}-{ready}"
    command = ["env", f"PYTHONPATH={ROOT}", *env, sys.executable, "-m", "gateway", "run", "-c", "CONFIG", "-D", folder]
    try:
        with program(*command, "--instance", name, config=config, ready=ready) as process:
            yield Ours(process, name, config)
    finally:
        if not instance:
            forget(name)


def forget(instance):
    for place in (RUN, STATE):
        shutil.rmtree(place / instance, ignore_errors=True)


@contextlib.contextmanager
def sing_box(config, ready, folder, env=()):
    with program(
        "env", *env, peers.path("sing-box"), "run", "-c", "CONFIG", "-D", folder, config=config, ready=ready
    ) as process:
        yield process


def told(port, host="198.51.100.7", target=80, first=b"?"):
    """Tag of the ``Teller`` that a flow through the SOCKS inbound at ``port`` ends at; "" where it is refused."""
    try:
        with socks_connect(port, host, target) as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(first)
            return sock.recv(200).decode().partition(" ")[0]
    except (AssertionError, OSError):
        return ""


def documented(page, title):
    """The first JSON example below the heading ``title`` of a page of docs/."""
    text = (ROOT / "docs" / page).read_text().partition(f"# {title}\n")[2]
    return json.loads(text.partition("```json\n")[2].partition("```")[0])
