"""A whole gateway on a lab's host ``gateway``, as its own process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.lab.lab import Lab
from tests.instances import forget

ROOT = Path(__file__).resolve().parents[3]


class Whole:
    """Its configuration is the file ``path``, to be there before ``start``."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.instance = lab, f"lab-{lab.id}"
        self.client, self.gateway, self.server = (lab.host(name) for name in ("client", "gateway", "server"))
        self.path = lab.folder / "gateway.json"

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway", "run", "-c", str(self.path), "--instance", self.instance]
        self.process = self.gateway.popen(command, cwd=ROOT)

    def command(self, *words: str, environment: Mapping[str, str] | None = None) -> Any:
        command = [sys.executable, "-m", "gateway", *words, "--instance", self.instance]
        return self.gateway.run(command, cwd=ROOT, timeout=60, environment=environment)

    def status(self) -> dict[str, Any]:
        """Empty where nobody answers."""
        done = self.command("status", "--json")
        found: dict[str, Any] = done.json() if done.ok else {}
        return found

    def close(self) -> None:
        if self.process.running:
            os.kill(self.process.pid, signal.SIGTERM)
            self.process.wait(30)
        done = self.command("down")
        forget(self.instance)
        assert done.ok, done.err
