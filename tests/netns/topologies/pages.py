"""The pages in docs/ that a person follows, run as they stand.

A fence ``sh`` holds lines for the box, ``sh laptop`` for the laptop, each line for a shell; a fence ``jsonc NAME`` is a
file of that name. ``gateway run`` stays in a terminal of its own: it goes on, and the next line waits until it steers.
Before ``gateway down`` it is ended as a person does, by Ctrl-C. ``gateway`` is this checkout, an instance of the test's
own; ``ssh`` is OpenSSH's, and each line of it a connection of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from gateway.lab.host import PATHS
from gateway.lab.lab import Lab
from gateway.lab.process import Process
from gateway.service.control import ask
from tests.sshd import Sshd

ROOT = Path(__file__).resolve().parents[3]
FENCE = re.compile(r"^```(sh|jsonc)(?: ([\w.-]+))?\n(.*?)^```$", re.M | re.S)
GATEWAY = """#!/bin/sh
word="$1"
shift
case "$word" in
run|confirm|status|devices|flows|down) set -- "$@" --instance {instance} ;;
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
    """Who follows a page in a laboratory with a ``box`` and a ``laptop``: at the box's console, or over one SSH
    connection from the laptop to its ``address``. ``said``: each line and what it printed."""

    def __init__(self, lab: Lab, address: str = "") -> None:
        self.lab, self.instance = lab, f"page-{lab.id}"
        self.folder = lab.folder / "home"
        self.said: dict[str, str] = {}
        self._gateway: Process | None = None
        self._left = ExitStack()
        tools = self.folder / "bin"
        tools.mkdir(parents=True)
        path = f"{tools}:{PATHS}"
        self._environment = {"PATH": path}
        sshd = Sshd(lab, lab.host("box"), path)
        self._left.callback(sshd.close)
        for name, script in (
            ("gateway", GATEWAY.format(instance=self.instance, root=ROOT, python=sys.executable)),
            ("sudo", '#!/bin/sh\nexec "$@"\n'),
            ("ssh", f'#!/bin/sh\nexec {shlex.join(sshd.words)} "$@"\n'),
        ):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        self._connection: list[str] = []
        if address:
            old = self._left.enter_context(sshd.session(lab.host("laptop"), address))
            self._connection = [*sshd.words, old, address]

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
        if "gateway run " in line:
            self._gateway = self._begin(host, f"echo $$ >pid; exec {line}")
            self._steers()
            return
        if "gateway down" in line:
            self.interrupt()
        done = self._begin(host, line).wait(60)
        assert done.ok, f"{host}: {line}: exit {done.code}\n{done.out}{done.err}"
        self.said[line] = done.out

    def _begin(self, host: str, line: str) -> Process:
        words = ["sh", "-c", line]
        if host == "box" and self._connection:
            host, words = "laptop", [*self._connection, f"cd {self.folder}; {line}"]
        return self.lab.host(host).popen(words, environment=self._environment, cwd=self.folder)

    def status(self) -> dict[str, Any]:
        return ask(Path("/run/gateway", self.instance), {"command": "status"})

    def _steers(self) -> None:
        assert self._gateway is not None
        end = time.monotonic() + 40
        while True:
            assert self._gateway.running, self._gateway.told()
            assert time.monotonic() < end, self._gateway.told()
            try:
                told = self.status()
            except Exception:
                told = {}
            if told.get("steering") and all(one["ready"] for one in told["uplinks"]):
                return
            time.sleep(0.1)

    def interrupt(self) -> None:
        if self._gateway is not None and self._gateway.running:
            self._signal(signal.SIGINT)
            done = self._gateway.wait(30)
            assert done.ok, done.err

    def _signal(self, number: signal.Signals) -> None:
        os.kill(int((self.folder / "pid").read_text()), number)

    def close(self) -> None:
        with self._left:
            if self._gateway is not None and self._gateway.running:
                self._signal(signal.SIGKILL)
                self._gateway.kill()
