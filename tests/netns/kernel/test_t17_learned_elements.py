"""T17: what a learned name costs beside 100,000 prefixes. ``gw bench steer`` holds it to its budget; here is what would
break it: libnftables, which reads back the whole table, or a kernel that walks it."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from .whole import ROOT

pytestmark = [pytest.mark.root, pytest.mark.slow]

SCRIPT = """
import json, statistics, time
from ipaddress import ip_address
from gateway.kernel.nft.library import Library
from gateway.kernel.plan import Capture, LearnedChange, Origin, PortRow, Profile, SourceClass, Span, Steering, Verdict
from gateway.kernel.steer import Steerer

rows = tuple(PortRow(network, 0, 65535, 0) for network in ("tcp", "udp"))
first = {4: int(ip_address("198.18.0.0")), 6: int(ip_address("2001:db8:77::"))}
taken = {}
run = Library.run
for count in (1_000, 100_000):
    Library.run = run
    spans = {bits: tuple(Span((20 << bits - 8) + (2 * n << bits - 28), (20 << bits - 8) + (2 * n + 1 << bits - 28) - 1,
                              Verdict.USER) for n in range(count)) for bits in (32, 128)}
    steerer = Steerer()
    steerer.apply(Steering((Profile(spans[32], spans[128], Verdict.DIRECT, Verdict.DIRECT, True),),
                           (SourceClass(rows),), (Origin((), (), 0),), (), 0), Capture(("lan0",), 7893))
    Library.run = None
    for family in (4, 6):
        times = []
        for number in range(1000):
            change = LearnedChange(0, family, first[family] + number, None, Verdict.SNIFF, 300)
            begun = time.perf_counter()
            assert steerer.elements([change]) == []
            times.append((time.perf_counter() - begun) * 1e6)
        taken[f"{count} {family}"] = statistics.median(times), statistics.quantiles(times, n=100)[98]
    Library.run = run
    listed = Library().run("list set inet gateway learned4_0_sniff")
    assert listed.count("timeout 5m") == 1000, listed[:500]
    steerer.close()
print(json.dumps(taken))
"""


def test_t17_an_element_costs_the_same_beside_a_hundred_thousand_prefixes(net: Any, figure: Any) -> None:
    done = net.gateway.run([sys.executable, "-c", SCRIPT], cwd=ROOT, check=True, timeout=300)
    taken = json.loads(done.out)
    for name, (median, late) in taken.items():
        figure(f"prefixes and family {name}: median {median:.0f} us, p99 {late:.0f} us")
    for family in (4, 6):
        assert taken[f"100000 {family}"][0] < 3 * taken[f"1000 {family}"][0]
