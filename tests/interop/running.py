"""``gateway run`` and sing-box as processes with one configuration and a folder of their own, and what may be asked of
ours while it runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

from gateway.box import RUN
from gateway.service.control import ask
from tests import peers
from tests.instances import instance
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
def ours(config, ready, folder, name="", env=()):
    """``folder`` is where relative paths start. What it keeps elsewhere is gone afterwards, but for that of an
    instance that has a ``name``."""
    command = ["env", f"PYTHONPATH={ROOT}", *env, sys.executable, "-m", "gateway", "run", "-c", "CONFIG", "-D", folder]
    with (
        contextlib.nullcontext(name) if name else instance(ready) as named,
        program(*command, "--instance", named, config=config, ready=ready) as process,
    ):
        yield Ours(process, named, config)


@contextlib.contextmanager
def sing_box(config, ready, folder, env=()):
    with program(
        "env", *env, peers.path("sing-box"), "run", "-c", "CONFIG", "-D", folder, config=config, ready=ready
    ) as process:
        yield process


def both(folder):
    """(name, who runs a configuration, where): sing-box, then us, each with a new folder in ``folder``."""
    for name, run in (("theirs", sing_box), ("ours", ours)):
        (folder / name).mkdir()
        yield name, run, folder / name


def until(work, seconds=DEADLINE):
    """``work()`` until it gives something true."""
    end = time.monotonic() + seconds
    while not (found := work()):
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)
    return found


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
