"""The ``dns`` object and what its rules plan."""

from ipaddress import ip_address

import pytest

from gateway.core.address import Address
from gateway.core.errors import ConfigError
from gateway.core.flow import Flow, Process
from gateway.dns.message import Question
from gateway.dns.options import decode_section
from gateway.dns.rule import Reject, Rules, accepts
from gateway.route.options import parse_headless

SERVERS = [{"type": "udp", "tag": "one", "server": "192.0.2.1"}, {"type": "local"}]
CLIENT = Flow("udp", "lan", "dns", Address.of("192.0.2.7", 4000), Address.of("192.0.2.1", 53))


def rules(*raw, sets=None, **more):
    config = decode_section({"servers": SERVERS, "rules": list(raw), **more})
    return Rules(config.rules, config.final, config.strategy, sets)


def plan(made, name, kind=1, flow=CLIENT):
    return [
        step.method or "reject" if isinstance(step, Reject) else step.server
        for step in made.plan(made.subject(Question(name, kind, 1, 0), flow))
    ]


def test_defaults():
    assert decode_section({}).final == ""
    assert decode_section({"servers": SERVERS}).final == "one"
    assert decode_section({"servers": SERVERS, "cache_capacity": 5}).cache_capacity == 1024


@pytest.mark.parametrize(("value", "path"), [
    ({"final": "two"}, "dns.final"),
    ({"rules": [{"domain": "a.example", "server": "two"}]}, "dns.rules[0].server"),
    ({"rules": [{"domain": "a.example"}]}, "dns.rules[0]"),
    ({"rules": [{"server": "one"}]}, "dns.rules[0]"),
    ({"rules": [{"domain": "a.example", "action": "route-options"}]}, "dns.rules[0]"),
    ({"rules": [{"domain": "a.example", "action": "predefined"}]}, "dns.rules[0].action"),
    ({"rules": [{"domian": "a.example", "server": "one"}]}, "dns.rules[0].domian"),
    ({"rules": [{"query_type": "NONSENSE", "server": "one"}]}, "dns.rules[0].query_type"),
    ({"rules": [7]}, "dns.rules[0]"),
    ({"fakeip": {}}, "dns.fakeip"),
    ({"cache_capacity": -1}, "dns.cache_capacity"),
    ([], "dns"),
])  # fmt: skip
def test_mistakes_are_named(value, path):
    if isinstance(value, dict):
        value = {"servers": SERVERS, **value}
    with pytest.raises(ConfigError) as caught:
        decode_section(value)
    assert caught.value.path == path


def test_the_first_rule_that_holds_decides():
    made = rules(
        {"query_type": ["HTTPS"], "action": "reject"},
        {"domain_suffix": ".example", "server": "1"},
        {"domain": "x.test", "action": "reject", "method": "drop"},
    )
    assert plan(made, "www.example", 65) == ["reject"]
    assert plan(made, "www.example") == ["1"]
    assert plan(made, "x.test") == ["drop"]
    assert plan(made, "y.test") == ["one"]
    assert not made.by_client


def test_options_gather():
    made = rules({"domain": "a.example", "action": "route-options", "rewrite_ttl": 7, "strategy": "ipv4_only"})
    step = made.plan(made.subject(Question("a.example", 1, 1, 0), None))[0]
    assert (step.server, step.rewrite_ttl, step.strategy) == ("one", 7, "ipv4_only")


def test_rules_by_client_are_noticed():
    made = rules({"source_ip_cidr": "192.0.2.0/24", "server": "1"})
    assert made.by_client
    assert plan(made, "a.example") == ["1"]
    assert plan(made, "a.example", flow=None) == ["one"]


def test_rules_by_group_and_cgroup():
    for rule in ({"group": "vpn"}, {"group_id": [5, 200]}, {"cgroup": "/system.slice"}):
        made = rules({**rule, "server": "1"})
        assert made.by_client
        member = CLIENT._replace(process=Process(gids=(100, 200), groups=("users", "vpn"), cgroup="/system.slice/a"))
        assert plan(made, "a.example", flow=member) == ["1"]
        assert plan(made, "a.example") == ["one"]


def test_address_rules_judge_the_answer():
    made = rules({"network": "udp", "ip_cidr": "198.51.100.0/24", "server": "1"})
    subject = made.subject(Question("a.example", 1, 1, 0), CLIENT)
    first, last = made.plan(subject)
    assert (first.server, last.server) == ("1", "one")
    assert accepts(first, subject, [ip_address("198.51.100.9")])
    assert not accepts(first, subject, [ip_address("203.0.113.9")])
    assert not accepts(first, subject, [])
    assert accepts(last, subject, [])
    assert plan(made, "a.example", 16) == ["one"]


def test_address_rules_in_rule_sets():
    inside = {"geo": (parse_headless({"ip_cidr": "192.0.2.0/24"}, ""),)}
    made = rules({"rule_set": "geo", "server": "1"}, sets=inside)
    assert plan(made, "a.example") == ["1", "one"]
    assert not made.by_client
    made = rules({"rule_set": "geo", "rule_set_ip_cidr_match_source": True, "server": "1"}, sets=inside)
    assert plan(made, "a.example") == ["1"]
    assert plan(made, "a.example", 16) == ["1"]
    assert made.by_client
