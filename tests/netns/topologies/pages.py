"""The pages in docs/ that a person follows, run as they stand.

A fence ``sh`` holds lines for the box, ``sh laptop`` for the laptop, each line for a shell; a fence ``jsonc NAME`` is a
file of that name. ``gateway run`` stays in a terminal of its own: it goes on, and the next line waits until it steers.
Before ``gateway down`` it is ended as a person does, by Ctrl-C. ``gateway`` is this checkout, an instance of the test's
own.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gateway.lab.host import PATHS
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.service.control import ask

ROOT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^```(sh|jsonc)(?: ([\w.-]+))?\n(.*?)^```$", re.M | re.S)
GATEWAY = """#!/bin/sh
word="$1"
shift
case "$word" in
run|status|devices|flows|down) set -- "$@" --instance {instance} ;;
explain) [ "$1" = -c ] || set -- "$@" --instance {instance} ;;
esac
PYTHONPATH={root} exec {python} -m gateway "$word" "$@"
"""


class Block(NamedTuple):
    """``where``: a host, or the name of a file."""

    kind: str
    where: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Those of ``docs/page``, in order."""
    for kind, where, text in FENCE.findall((ROOT / "docs" / page).read_text()):
        if kind == "sh" or where:
            yield Block(kind, where or "box", text)


class Reader:
    """Who follows a page in a laboratory with a ``box`` and a ``laptop``. ``said``: each line and what it printed."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.instance = lab, f"page-{lab.id}"
        self.folder = lab.folder / "home"
        self.said: dict[str, str] = {}
        self._gateway: Process | None = None
        tools = self.folder / "bin"
        tools.mkdir(parents=True)
        text = GATEWAY.format(instance=self.instance, root=ROOT, python=sys.executable)
        for name, script in (("gateway", text), ("sudo", '#!/bin/sh\nexec "$@"\n')):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        self._environment = {"PATH": f"{tools}:{PATHS}"}

    def follow(self, page: str) -> Iterator[Block]:
        """Each block is given out before it is done."""
        for block in blocks(page):
            yield block
            if block.kind == "jsonc":
                (self.folder / block.where).write_text(block.text)
                continue
            for line in block.text.splitlines():
                if line and not line.startswith("#"):
                    self.type(block.where, line)

    def type(self, host: str, line: str) -> None:
        """Raises AssertionError where the line fails."""
        words = ["sh", "-c", line]
        if "gateway run " in line:
            self._gateway = self.lab.host(host).popen(["sh", "-c", f"exec {line}"], environment=self._environment,
                                                      cwd=self.folder)  # fmt: skip
            self._steers()
            return
        if "gateway down" in line:
            self.interrupt()
        done = self.lab.host(host).run(words, environment=self._environment, cwd=self.folder, timeout=60)
        assert done.ok, f"{host}: {line}: exit {done.code}\n{done.out}{done.err}"
        self.said[line] = done.out

    def _steers(self) -> None:
        assert self._gateway is not None
        end = time.monotonic() + 40
        while True:
            assert self._gateway.running, self._gateway.told()
            assert time.monotonic() < end, self._gateway.told()
            try:
                told = ask(Path("/run/gateway", self.instance), {"command": "status"})
            except Exception:
                told = {}
            if told.get("steering") and all(one["ready"] for one in told["uplinks"]):
                return
            time.sleep(0.1)

    def interrupt(self) -> None:
        if self._gateway is not None and self._gateway.running:
            os.kill(self._gateway.pid, signal.SIGINT)
            done = self._gateway.wait(30)
            assert done.ok, done.err

    def close(self) -> None:
        if self._gateway is not None and self._gateway.running:
            self._gateway.kill()
        shutil.rmtree(Path("/var/lib/gateway", self.instance), ignore_errors=True)
