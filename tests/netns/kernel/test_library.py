"""libnftables in this process: what a signal makes of a transaction."""

from __future__ import annotations

import os
import sys

import pytest

from gateway.lab.lab import Lab
from gateway.lab.topology import Host as Plan
from gateway.lab.topology import Topology

from .whole import ROOT

pytestmark = pytest.mark.root
PROGRAM = """
import signal, time
from gateway.kernel.nft.library import Library

alarms = [0]
def heard(number, frame):
    alarms[0] += 1
signal.signal(signal.SIGALRM, heard)
signal.siginterrupt(signal.SIGALRM, False)  # as asyncio does it
library, rules = Library(), "".join(f"add rule inet t c tcp dport {port} accept\\n" for port in range(1, 200))
library.run("table inet t { chain c { type filter hook forward priority 0; }; }\\n")
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
end = time.monotonic() + 3
while time.monotonic() < end:
    library.run("flush chain inet t c\\n" + rules)
signal.setitimer(signal.ITIMER_REAL, 0)
print(alarms[0])
"""


def test_a_signal_is_no_refusal() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(Topology("library", (Plan("router"),), ())) as lab:
        done = lab.host("router").run([sys.executable, "-c", PROGRAM], cwd=ROOT)
    assert done.ok, done.err
    assert int(done.out) > 100
