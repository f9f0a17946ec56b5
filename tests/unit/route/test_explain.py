"""Explanations agree with the tables and the engine."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from gateway.core.address import Address
from gateway.core.flow import Process
from gateway.kernel.plan import by_user
from gateway.route.compile import Inputs, compile_rules
from gateway.route.engine import Engine
from gateway.route.explain import Query, explain
from gateway.route.options import parse_route

RULES = parse_route({"rules": [
    {"ip_is_private": True, "outbound": "direct"}, {"process_name": "curl", "outbound": "vps"}, {"action": "sniff"},
    {"domain_suffix": "far.example", "outbound": "vps"}, {"domain": "bad.example", "action": "reject"},
]}).rules  # fmt: skip
ENGINE = Engine(RULES, "direct")
COMPILED = compile_rules(RULES, "direct", {}, Inputs({"direct": "direct"}))
LAN = Address.of("192.168.8.2", 4000)
OUT = ip_address("203.0.113.1")


def ask(**fields: Any) -> dict[str, Any]:
    return explain(ENGINE, COMPILED, Query(**{"network": "tcp", "port": 443, "source": LAN, **fields}))


def test_where_and_which_rule() -> None:
    found = ask(address=ip_address("10.0.0.1"))
    assert (found["where"], found["verdict"], found["rule"], found["outbound"]) == ("kernel", "direct", 0, "direct")
    found = ask(address=OUT, names=("a.far.example",), shown="a.far.example")
    assert (found["where"], found["verdict"], found["rule"]) == ("userspace", "user", 3)
    found = ask(address=OUT, names=("near.example",), shown="near.example")
    assert (found["where"], found["verdict"], found["rule"]) == ("kernel", "direct", -1)
    found = ask(address=OUT, shown="far.example")
    assert (found["where"], found["verdict"], found["rule"], found["sniffed"]) == ("userspace", "sniff", 3, True)
    found = ask(address=OUT, names=("bad.example",))
    assert (found["where"], found["verdict"], found["action"]) == ("kernel", "reject", "reject")


def test_processes_and_names_alone() -> None:
    found = ask(address=OUT, source=None, process=Process("/usr/bin/curl", 0, "root"))
    assert (found["verdict"], found["rule"]) == ("user", 1)
    found = ask(address=OUT, source=None, process=Process("/usr/bin/wget", 0, "root"))
    assert found["rule"] == -1
    found = ask(shown="far.example")
    assert (found["where"], found["outbound"], found["profile"]) == ("userspace", "vps", None)


def test_a_bypass_and_what_it_overrules() -> None:
    rules = parse_route({"rules": [
        {"action": "sniff"}, {"domain": "far.example", "outbound": "vps"}, {"port": 25, "outbound": "vps"},
        {"ip_cidr": "203.0.113.0/24", "action": "bypass"}, {"domain": "other.example", "outbound": "vps"},
    ]}).rules  # fmt: skip
    compiled = compile_rules(rules, "direct", {}, Inputs({"direct": "direct"}))

    def asked(**fields: Any) -> dict[str, Any]:
        query = Query(**{"network": "tcp", "port": 443, "source": LAN, "address": OUT, **fields})
        return explain(Engine(rules, "direct"), compiled, query)

    found = asked()
    assert (found["where"], found["rule"], found["action"], found["overruled"]) == ("kernel", 3, "bypass", None)
    assert asked(shown="other.example")["overruled"] is None, "a rule below"
    found = asked(shown="far.example")
    assert (found["where"], found["rule"], found["action"]) == ("kernel", 3, "bypass")
    assert found["overruled"] == {"rule": 1, "action": "route", "outbound": "vps"}
    assert "rule 1 above would say vps" in "\n".join(found["text"])
    found = asked(names=("far.example",), shown="far.example")
    assert (found["where"], found["rule"], found["outbound"]) == ("userspace", 1, "vps"), "the kernel knows the name"
    assert asked(port=25)["rule"] == 2
    assert asked(address=ip_address("192.0.2.1"), port=25)["rule"] == 2


def test_what_a_relaxed_mode_skips() -> None:
    """The kernel goes by the address; a rule that it did not wait for is told, with what it would have said."""
    rules = parse_route({"rules": [
        {"action": "sniff"}, {"domain": "far.example", "outbound": "vps"}, {"protocol": "quic", "action": "reject"},
        {"ip_cidr": "203.0.113.0/24", "outbound": "direct"}, {"domain": "late.example", "outbound": "direct"},
    ]}).rules  # fmt: skip

    def asked(mode: Any, **fields: Any) -> dict[str, Any]:
        compiled = compile_rules(rules, "vps", {}, Inputs({"direct": "direct"}, mode=mode))
        query = Query(**{"network": "tcp", "port": 443, "source": LAN, "address": OUT, **fields})
        return explain(Engine(rules, "vps"), compiled, query)

    far = {"rule": 1, "match": "domain=far.example", "action": "Route", "outbound": "vps"}
    found = asked("strict", shown="far.example")
    assert (found["where"], found["rule"], found["skipped"]) == ("userspace", 1, [])
    for mode in ("balanced", "fast"):
        found = asked(mode)
        assert (found["where"], found["rule"], found["skipped"], found["overruled"]) == ("kernel", 3, [far], None)
        assert f"mode {mode}" in found["text"][-2]
        assert found["text"][-1] == "  skipped: rule 1 (Route): domain=far.example -> vps"
        found = asked(mode, shown="far.example")
        assert (found["where"], found["rule"], found["outbound"], found["sniffed"]) == ("kernel", 3, "direct", False)
        assert found["overruled"] == {"rule": 1, "action": "route", "outbound": "vps"}
        assert "which would be for rule 1: vps" in found["text"]
        assert [step["rule"] for step in found["steps"]] == [0, 1, 2, 3]
        assert [one["rule"] for one in asked(mode, network="udp")["skipped"]] == [1, 2]
        found = asked(mode, names=("far.example",), shown="far.example")
        assert (found["where"], found["rule"], found["skipped"]) == ("userspace", 1, []), "the kernel knows the name"
        found = asked(mode, names=("near.example",), shown="near.example")
        assert (found["verdict"], found["rule"], found["skipped"]) == ("direct", 3, []), "and that it is another"
        assert asked(mode, address=ip_address("192.0.2.1"))["skipped"] == [], "in userspace"


def test_text_says_why_not() -> None:
    text = "\n".join(ask(address=OUT, shown="far.example")["text"])
    assert "ip_is_private=true: no" in text
    assert "rule 3 decides: vps" in text
    assert "process_name=curl" in text


def test_what_the_kernel_does_not_know_is_userspace() -> None:
    rules = parse_route({"rules": [{"process_path": "/usr/bin/curl", "outbound": "vps"}]}).rules
    compiled = compile_rules(rules, "direct", {}, Inputs({"direct": "direct"}))
    blind = replace(compiled.steering, local=())
    query = Query("tcp", 443, OUT, process=Process("/usr/bin/wget", 0, "root"))
    found = explain(Engine(rules, "direct"), compiled, query)
    assert (found["where"], found["verdict"], found["outbound"]) == ("kernel", "direct", "direct")
    found = explain(Engine(rules, "direct"), compiled, query, steering=blind)
    assert (found["where"], found["verdict"], found["outbound"]) == ("userspace", "sniff", "direct")
    assert "does not know this host's programs" in found["text"][-1]
    forwarded = explain(Engine(rules, "direct"), compiled, Query("tcp", 443, OUT, LAN), steering=blind)
    assert forwarded["where"] == "kernel"


def test_executables_and_cgroups_that_were_met() -> None:
    raw = {"rules": [{"process_path_regex": "^/opt/", "outbound": "vps"}, {"cgroup": "/far", "outbound": "vps"}]}
    rules = parse_route(raw).rules
    compiled = compile_rules(rules, "direct", {}, Inputs({"direct": "direct"}))
    for process, verdict in (
        (Process("/opt/curl", 0, cgroup="/"), "user"), (Process("/bin/curl", 0, cgroup="/far/away"), "user"),
        (Process("/bin/curl", 0, cgroup="/near"), "direct"),
    ):  # fmt: skip
        found = explain(Engine(rules, "direct"), compiled, Query("tcp", 443, OUT, process=process))
        assert (found["verdict"], found["outbound"]) == (verdict, "vps" if verdict == "user" else "direct")
    assert compiled.lookup("tcp", 443, 4, int(OUT), socket=30)[1].name == "SNIFF"


def test_users_are_nftables_to_judge() -> None:
    rules = parse_route({"rules": [{"user_id": 4001, "outbound": "vps"}]}).rules
    compiled = compile_rules(rules, "direct", {}, Inputs({"direct": "direct"}))
    users = replace(compiled.steering, local=(), users=by_user(compiled.processes, compiled.steering))
    for process, verdict in ((Process("", 4001, ""), "user"), (Process("", 4002, ""), "direct"), (None, "direct")):
        found = explain(Engine(rules, "direct"), compiled, Query("tcp", 443, OUT, process=process), steering=users)
        assert found["verdict"] == verdict
