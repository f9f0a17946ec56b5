"""The far end of an outbound: a gateway of ours on another host, a SOCKS server and nothing else."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
SOCKS = 1080


@contextmanager
def far(lab: Lab, host: str, address: str) -> Iterator[None]:
    """It listens on ``address`` of ``host``, port ``SOCKS``, in the block."""
    path = lab.folder / "far.json"
    path.write_text(json.dumps({"inbounds": [{"type": "socks", "listen": address, "listen_port": SOCKS}]}))
    words = [sys.executable, "-m", "gateway", "run", "-c", path, "--instance", f"far-{lab.id}"]
    process = lab.host(host).popen(words, cwd=ROOT)
    try:
        lab.host(host).wait_listening([("tcp", SOCKS)], process)
        yield
    finally:
        if process.running:
            os.kill(process.pid, signal.SIGTERM)
            process.wait(30)
