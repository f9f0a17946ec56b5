"""Walking the rules: what is asked for when, and what is decided."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.errors import ConfigError
from gateway.core.flow import Findings, Flow, Process
from gateway.route.compile import Inputs, compile_rules
from gateway.route.engine import Decision, Engine, ResolveRequest, SniffRequest, Trace, Walk
from gateway.route.options import parse_route


def start(rules: list[dict[str, Any]], to: str = "203.0.113.1", port: int = 443, network: Any = "tcp",
          trace: Trace | None = None, **findings: Any) -> tuple[Walk, Findings]:  # fmt: skip
    engine = Engine(parse_route({"rules": rules}).rules, "final")
    found = Findings(**findings)
    flow = Flow(network, "in", "tproxy", Address.of("192.168.8.2", 4000), Address.of(to, port))
    return engine.start(flow, found, trace), found


def decide(rules: list[dict[str, Any]], **key: Any) -> Decision:
    done = start(rules, **key)[0].step()
    assert isinstance(done, Decision)
    return done


def test_order_and_final() -> None:
    rules = [{"port": 80, "outbound": "a"}, {"port": [80, 443], "outbound": "b"}, {"outbound": "c"}]
    assert (decide(rules).outbound, decide(rules).rule) == ("b", 1)
    assert decide(rules, port=80).outbound == "a"
    assert decide(rules, port=22).outbound == "c"
    assert (decide([]).outbound, decide([]).rule) == ("final", -1)


def test_sniff_is_asked_once_and_seen_by_what_follows() -> None:
    rules = [{"domain": "a.example", "outbound": "early"}, {"action": "sniff", "timeout": "1s"}, {"action": "sniff"},
             {"domain": "a.example", "outbound": "late"}, {"protocol": "tls", "outbound": "tls"}]  # fmt: skip
    walk, found = start(rules)
    asked = walk.step()
    assert asked == SniffRequest(frozenset({"tls", "http", "dns"}), 1.0)
    found.protocol, found.domain = "tls", "a.example"
    done = walk.step()
    assert isinstance(done, Decision)
    assert done.outbound == "late"
    walk, found = start(rules)
    walk.step()
    found.protocol = "tls"
    assert walk.step().outbound == "tls"  # type: ignore[union-attr]


def test_sniffers_by_network_port_and_option() -> None:
    assert start([{"action": "sniff"}], network="udp")[0].step() == SniffRequest(frozenset({"dns", "quic"}), 0.3)
    assert start([{"action": "sniff", "sniffer": "quic"}])[0].step().outbound == "final"  # type: ignore[union-attr]
    for port in (25, 465, 587, 143, 993, 110, 995):
        assert isinstance(start([{"action": "sniff"}], port=port)[0].step(), Decision)
    walk, _ = start([{"action": "sniff", "sniffer": "tls"}, {"action": "sniff"}])
    assert walk.step() == SniffRequest(frozenset({"tls"}), 0.3)
    assert walk.step() == SniffRequest(frozenset({"http", "dns"}), 0.3), "what has failed is not tried again"


def test_learned_names_count_until_something_is_sniffed() -> None:
    rules = [{"domain": "learned.example", "outbound": "a"}]
    assert decide(rules, learned=("learned.example",)).outbound == "a"
    walk, found = start([{"action": "sniff"}, *rules], learned=("learned.example",))
    walk.step()
    found.protocol, found.domain = "tls", "other.example"
    assert walk.step().outbound == "final"  # type: ignore[union-attr]


def test_resolve() -> None:
    rules = [
        {"action": "resolve", "server": "dns", "strategy": "ipv4_only"},
        {"ip_cidr": "192.0.2.0/24", "outbound": "a"},
    ]
    walk, found = start(rules, to="a.example")
    asked = walk.step()
    assert isinstance(asked, ResolveRequest)
    assert (asked.domain, asked.action.server, asked.action.strategy) == ("a.example", "dns", "ipv4_only")
    found.addresses = (ip_address("192.0.2.5"),)
    assert walk.step().outbound == "a"  # type: ignore[union-attr]
    assert decide(rules).outbound == "final", "an address needs no resolving"


def test_a_bypass_that_the_kernel_did_not_see_to_hold() -> None:
    rules = [{"port": 443, "action": "bypass", "override_port": 80}, {"port": 443, "outbound": "b"}]
    assert (decide(rules).outbound, decide(rules).destination) == ("b", None)
    rules[0]["outbound"] = "a"
    done = decide(rules)
    assert (done.outbound, done.rule, done.destination) == ("a", 0, Address.of("203.0.113.1", 80))


def test_a_bypass_of_a_process_that_the_kernel_did_not_know() -> None:
    """Goes as its next flow, which the kernel keeps: directly, whatever a sniff would show, but below what holds."""
    rules: Any = [
        {"process_name": "ssh", "outbound": "a"}, {"action": "sniff"}, {"domain": "a.example", "outbound": "b"},
        {"port": 443, "action": "bypass"},
    ]  # fmt: skip
    engine = Engine(parse_route({"rules": rules}).rules, "c")
    ends = Address.of("192.0.2.1", 4000), Address.of("203.0.113.1", 443)
    flow = Flow("tcp", "in", "tproxy", *ends, process=Process("/bin/curl"))
    findings = Findings(protocol="tls", domain="q.example")
    assert engine.decide(flow, findings).outbound == "c"
    engine.captured, engine.direct = "in", "direct"
    engine.keeps = compile_rules(engine.rules, engine.final, {}, Inputs(dict.fromkeys("abc", "proxy"), "in")).keeps
    done = engine.decide(flow, findings)
    assert (done.outbound, done.rule) == ("direct", 3)
    conflict = Findings(protocol="tls", domain="q.example", learned=("q.example", "a.example"))
    assert engine.decide(flow, conflict).outbound == "c", "of two names that differ the kernel keeps none"
    assert engine.decide(flow._replace(process=Process("/bin/ssh")), findings).outbound == "a"
    assert engine.decide(flow._replace(process=None), findings).outbound == "c"
    assert engine.decide(flow._replace(inbound="socks"), findings).outbound == "c"
    assert engine.decide(flow._replace(destination=Address.of("203.0.113.1", 80)), findings).outbound == "c"


def test_reject_hijack_and_options() -> None:
    assert decide([{"action": "reject", "method": "drop"}]).method == "drop"
    assert decide([{"action": "reject", "no_drop": True}]) == Decision("reject", "", 0, "default", True)
    assert decide([{"action": "hijack-dns"}]).action == "hijack-dns"
    done = decide([{"action": "route-options", "udp_timeout": "10s", "udp_connect": True}, {"outbound": "a"}])
    assert (done.outbound, done.udp_timeout, done.udp_connect) == ("a", 10.0, True)


def test_overrides_change_what_later_rules_see() -> None:
    rules = [{"port": 443, "action": "route-options", "override_address": "192.0.2.9", "override_port": 8443},
             {"ip_cidr": "192.0.2.9", "port": 8443, "outbound": "a"}]  # fmt: skip
    done = decide(rules)
    assert (done.outbound, done.destination) == ("a", Address.of("192.0.2.9", 8443))
    named = decide(
        [{"action": "route-options", "override_address": "b.example"}, {"domain": "b.example", "outbound": "b"}]
    )
    assert (named.outbound, named.destination) == ("b", Address.of("b.example", 443))


def test_trace() -> None:
    trace = Trace()
    start([{"port": 80, "outbound": "a"}, {"outbound": "b"}], trace=trace)[0].step()
    assert trace.steps == [(0, False, "Route"), (1, True, "Route")]


@pytest.mark.parametrize(
    ("rule", "part"),
    [
        ({"domian": "x", "outbound": "a"}, 'did you mean "domain"'),
        ({"clash_mode": "x", "outbound": "a"}, "exists in sing-box 1.12.12 but is not built yet"),
        ({"network_strategy": "x", "outbound": "a"}, "not built yet"),
        ({"tls_fragment": True, "outbound": "a"}, "not built yet"),
        ({"query_type": "A", "outbound": "a"}, "unknown field"),
        ({"geoip": "cn", "outbound": "a"}, "removed in sing-box 1.12.0"),
        ({"domain": "x"}, 'missing "outbound"'),
        ({"action": "fly"}, "unknown action"),
        ({"action": "direct"}, "not built yet"),
        ({"action": "sniff", "sniffer": "ssh"}, "not built yet"),
        ({"action": "sniff", "sniffer": "magic"}, "unknown sniffer"),
        ({"action": "sniff", "timeout": 5}, "duration"),
        ({"action": "route-options"}, "without options"),
        ({"action": "reject", "method": "drop", "no_drop": True}, "no_drop"),
        ({"type": "logical", "mode": "xor", "rules": [], "outbound": "a"}, "mode"),
        ({"type": "logical", "mode": "and", "rules": [], "outbound": "a"}, '"rules"'),
        ({"type": "logical", "mode": "and", "rules": [{"outbound": "b"}], "outbound": "a"}, "missing conditions"),
        ({"rule_set": "none", "outbound": "a"}, "no rule set has the tag"),
        ({"override_port": 70000, "outbound": "a"}, "not a port"),
    ],
)
def test_bad_rules(rule: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        parse_route({"rules": [{"outbound": "x"}, rule]})
    assert caught.value.path.startswith("route.rules[1]")


def test_a_rule_set_tag_is_used_once() -> None:
    with pytest.raises(ConfigError, match="twice"):
        parse_route({"rule_set": [{"tag": "a", "rules": []}, {"tag": "a", "rules": []}]})


@pytest.mark.parametrize(
    ("entry", "part", "place"),
    [
        ({"type": "remote", "url": "x"}, "is not a URL", ".url"),
        ({"type": "remote"}, "is not a URL", ".url"),
        ({"type": "remote", "url": "https://a.example/list"}, "ends neither in .json nor in .srs", ""),
        ({"type": "remote", "url": "https://a.example/list.txt?x=.srs"}, "ends neither in .json nor in .srs", ""),
        (
            {"type": "remote", "url": "https://a.example/a.srs", "update_interval": "-1d"},
            "not negative",
            ".update_inter",
        ),
        ({"type": "remote", "url": "https://a.example/a.srs", "path": "a"}, 'of type "local"', ".path"),
        ({"type": "local", "path": "a.srs", "url": "https://a.example/a.srs"}, 'of type "remote"', ".url"),
        ({"type": "inline", "rules": [], "update_interval": "1d"}, 'of type "remote"', ".update_interval"),
    ],
)
def test_bad_rule_sets(entry: dict[str, Any], part: str, place: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        parse_route({"rule_set": [{"tag": "a", **entry}]})
    assert caught.value.path.startswith(f"route.rule_set[0]{place}")


@pytest.mark.parametrize(
    ("more", "form"),
    [({"url": "https://a.example/a.srs?b=.json"}, "binary"), ({"url": "https://a.example/a.json"}, "source"),
     ({"url": "https://a.example/", "format": "binary"}, "binary")],
)  # fmt: skip
def test_the_form_of_a_remote_rule_set(more: dict[str, Any], form: str) -> None:
    assert parse_route({"rule_set": [{"tag": "a", "type": "remote", **more}]}).rule_set[0].form == form


@pytest.mark.parametrize(
    ("rule", "held"),
    [
        ({"domain_suffix": "example"}, False),
        ({"domain": "a.example", "domain_regex": ".*"}, False),
        ({"domain_suffix": "example", "invert": True}, True),
        ({"domain_suffix": "example", "ip_cidr": "203.0.113.0/24"}, True),
        ({"domain_keyword": "a", "port": 443}, False),
        ({"type": "logical", "mode": "or", "rules": [{"domain": "a.example"}, {"port": 443}]}, True),
        ({"type": "logical", "mode": "and", "rules": [{"domain": "a.example", "invert": True}]}, True),
    ],
)
def test_rules_about_names_for_a_flow_without_one(rule: dict[str, Any], held: bool) -> None:
    """They may be passed over; what else such a rule asks may not."""
    assert decide([rule | {"outbound": "a"}]).outbound == ("a" if held else "final")
