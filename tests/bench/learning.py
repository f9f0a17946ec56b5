"""``python -m tests.bench.learning FILE RUNS`` in a namespace of its own: what the kernel's rules cost to load, and a
learned name to insert below them. One JSON document: ``load`` in milliseconds, ``insert`` in microseconds.

``load``: rules compiled and in the kernel, rule sets included, the file already parsed. ``insert``: one element, from
its change to the kernel's acknowledgement, the 99th percentile. ``learn``: a name with two addresses, from the moment
DNS knows them, the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from ipaddress import ip_address

from gateway.cli import configuration
from gateway.kernel.plan import Capture, LearnedChange, Verdict
from gateway.kernel.steer import Steerer
from gateway.prediction import kinds
from gateway.route.compile import Inputs, compile_rules
from gateway.route.engine import Engine
from gateway.route.learned import Learned
from gateway.route.ruleset.load import load_all

INSERTS = 1000
LAN, PORT = "lan", 12345


def main(path: str, runs: int) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser()
    configuration.add_arguments(parser)
    config = configuration.configuration(parser.parse_args(["-c", path]))
    assert config.route is not None
    found: dict[str, list[float]] = {"load": [], "insert": [], "learn": []}
    for _ in range(runs):
        sets = load_all(config.route, config.directory)
        begun = time.perf_counter()
        engine = Engine(config.route.rules, config.route.final, sets)
        compiled = compile_rules(engine.rules, engine.final, engine.sets, Inputs(kinds(config), "gateway", {}))
        steerer = Steerer()
        try:
            steerer.apply(compiled.steering, Capture((LAN,), PORT, 0))
            found["load"].append((time.perf_counter() - begun) * 1e3)
            profile = next(number for number, one in enumerate(compiled.steering.profiles) if one.learned)
            found["insert"].append(insert(steerer, profile))
            found["learn"].append(learn(steerer, Learned(compiled)))
        finally:
            steerer.close()
    return found


def insert(steerer: Steerer, profile: int) -> float:
    times = []
    for number in range(INSERTS):
        change = LearnedChange(profile, 4, int(ip_address("198.18.0.0")) + number, None, Verdict.USER, 300)
        begun = time.perf_counter()
        steerer.elements([change])
        times.append((time.perf_counter() - begun) * 1e6)
    return statistics.quantiles(times, n=100)[98]


def learn(steerer: Steerer, learned: Learned) -> float:
    times, client = [], ip_address("192.168.1.2")
    for number in range(INSERTS):
        texts = (f"198.51.{number >> 8}.{number & 255}", f"2001:db8:77::{number:x}")
        addresses = [(ip_address(text), 300) for text in texts]
        begun = time.perf_counter()
        changes = learned.learn(f"host{number}.bench.example", client, addresses, begun)
        assert changes, "the rules do not need this name in the kernel"
        steerer.elements(changes)
        times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
