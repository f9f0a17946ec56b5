"""The rule of a flow of the kernel: told where its packets show it, and then right whatever they hide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow, Process
from gateway.kernel.plan import Verdict
from gateway.route.action import Bypass
from gateway.route.engine import Engine, SniffRequest
from gateway.route.options import parse_route
from gateway.route.retrace import retrace
from tests.unit.route import brute
from tests.unit.route.judge import Judge, Shown
from tests.unit.route.test_t03_every_completion import rule_list

RULES: list[dict[str, Any]] = [
    {"action": "sniff"},
    {"protocol": "dns", "action": "hijack-dns"},
    {"domain_suffix": "far.example", "outbound": "vps"},
    {"domain": "near.example", "port": 8443, "outbound": "direct"},
    {"ip_cidr": "203.0.113.0/24", "outbound": "direct"},
    {"process_name": "curl", "outbound": "direct"},
    {"port": 7000, "action": "bypass"},
]


def told(
    to: str, port: int = 443, names: tuple[str, ...] = (), *, owned: bool = True, process: Process | None = None,
    final: str = "direct",
) -> Any:  # fmt: skip
    engine = Engine(parse_route({"rules": RULES}).rules, final)
    flow = Flow("tcp", "in", "tproxy", Address.of("192.168.8.2", 4000), Address.of(to, port), "", process)
    found = retrace(engine, flow, names, lambda tag: tag == "direct", owned=owned)
    return found if found is None else found[0]


def test_what_packets_show() -> None:
    assert told("203.0.113.9") == 4, "rules that say otherwise did not hold, whatever they ask for"
    assert told("203.0.113.9", 8443) is None, "it may be near.example"
    assert told("203.0.113.9", 8443, ("near.example",)) == 3
    assert told("203.0.113.9", 8443, ("other.example",)) == 4
    assert told("203.0.113.9", 8443, ("near.example", "other.example")) is None, "which of them is not known"
    assert told("198.51.100.1") == -1
    assert told("198.51.100.1", process=Process("/usr/bin/curl")) == 5
    assert told("198.51.100.1", owned=False) is None
    assert told("198.51.100.1", 7000) == 6
    assert told("198.51.100.1", final="vps") is None, "by rules that have changed"


def ends(case: brute.Case, flow: Flow, shown: Shown, learned: tuple[str, ...]) -> int:
    """The rule that decides where it shows this."""
    findings = Findings(learned=learned)
    walk = case.engine.start(flow, findings)
    while True:
        step = walk.step()
        if isinstance(step, SniffRequest):
            if shown.protocol in step.protocols:
                findings.protocol, findings.domain, findings.client = shown
        elif hasattr(step, "rule"):
            return int(step.rule)


@pytest.mark.parametrize(("first", "lists"), [(0, 80), pytest.param(1000, 600, marks=pytest.mark.slow)])
def test_right_whatever_is_hidden(first: int, lists: int, figure: Callable[[str], None]) -> None:
    mix: Counter[str] = Counter()
    for seed in range(first, first + lists):
        case, keys = rule_list(seed, Counter())
        if case.mode != "strict" or any(isinstance(rule.action, Bypass) for rule in case.engine.rules):
            continue
        judge = Judge(case)
        for key in keys:
            if judge.ruling(key).verdict is not Verdict.DIRECT:
                continue
            mix["direct"] += 1
            certain = 0
            for number, (flow, learned, shown) in enumerate(judge.completions(key)):
                if number == 20:
                    break
                found = retrace(case.engine, flow, key.names, lambda tag: brute.KINDS.get(tag) == "direct", owned=True)
                if found is None:
                    continue
                certain = 1
                rules = {ends(case, flow, one, learned) for one in shown}
                assert rules == {found[0]}, (seed, key, flow, case.raw)
            mix["certain"] += certain
    figure(f"of {mix['direct']} direct packets the rule of {mix['certain']} is certain")
    assert mix["certain"] > mix["direct"] / 4
