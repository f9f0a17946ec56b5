"""``python -m tests.bench.prefixes COUNT FILE``: holds a table that steers by ``COUNT`` prefixes, of which the last one
is direct: the measured flows go there. Writes ``FILE`` when it stands, and waits to be ended.
"""

from __future__ import annotations

import signal
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from gateway.kernel.plan import Capture, Origin, PortRow, Profile, SourceClass, Span, Steering, Verdict
from gateway.kernel.steer import Steerer
from tests.bench.rules import MEASURED

FIRST, STEP, LENGTH = int(ip_address("20.0.0.0")), 128, 16
"""A million of them end in 27.255.255.255."""


def steering(count: int) -> Steering:
    measured = ip_network(MEASURED)
    starts = range(FIRST, FIRST + STEP * (count - 1), STEP)
    spans = [Span(start, start + LENGTH - 1, Verdict.USER) for start in starts]
    spans.append(Span(int(measured[0]), int(measured[-1]), Verdict.DIRECT))
    rows = tuple(PortRow(network, 0, 65535, 0) for network in ("tcp", "udp"))
    profile = Profile(tuple(spans), (), Verdict.REJECT, Verdict.REJECT, False)
    return Steering((profile,), (SourceClass(rows),), (Origin((), (), 0),), ((0, 0),), 0)


def main(count: int, file: Path) -> None:
    steerer = Steerer()
    try:
        steerer.apply(steering(count), Capture(("lan",), 12345, 0))
        file.write_text("stands\n")
        signal.pause()
    finally:
        steerer.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
