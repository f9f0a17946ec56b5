"""The compiler on configurations written by hand; test_t03_every_completion.py holds it against the engine."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow
from gateway.kernel.plan import Verdict
from gateway.route import compile as compiler
from gateway.route import program
from gateway.route.compile import Inputs, compile_rules
from gateway.route.engine import Trace
from gateway.route.options import parse_route
from gateway.route.ruleset.load import load_all
from tests.unit.route import brute
from tests.unit.route.judge import Judge, Shown, decide, ends, verdict_of


def test_certain_is_exact_about_sniffing() -> None:
    """``certain`` says yes only where no protocol and no shown name changes the outcome."""
    said = 0
    for seed in range(600, 680):
        rng = random.Random(seed)
        case = brute.configuration(rng)
        judge = Judge(case)
        for key in brute.keys(rng, 12):
            flow = next(judge.flows(key))
            learned = key.names[:1]
            if not case.compiled.certain(flow, Findings(learned=learned)):
                continue
            said += 1
            ends = {decide(case.engine, flow, shown, learned).outcome for shown in judge.shown(key, ["", *judge.names])}
            assert len(ends) == 1, f"seed {seed}: {key}"
    assert said > 100


RULES = {
    "rules": [
        {"ip_is_private": True, "outbound": "direct"},
        {"port": 22, "outbound": "direct"},
        {"action": "sniff"},
        {"protocol": "dns", "action": "hijack-dns"},
        {"domain_suffix": "ads.example", "action": "reject"},
        {"domain_suffix": "far.example", "outbound": "vps"},
        {"ip_cidr": "198.51.100.0/24", "outbound": "vps"},
    ]
}


def compiled(raw: Any = RULES, final: str = "direct", mode: Any = "strict") -> compiler.Compiled:
    return compile_rules(parse_route(raw).rules, final, {}, Inputs({"direct": "direct"}, mode=mode))


def look(made: compiler.Compiled, address: str, port: int, *names: str, network: str = "tcp") -> str:
    ip = ip_address(address)
    source = int(ip_address("192.168.8.2"))
    return made.lookup(network, port, ip.version, int(ip), source=source, names=names)[1].name  # type: ignore[arg-type]


def test_the_usual_configuration() -> None:
    made = compiled()
    assert look(made, "10.0.0.1", 443) == "DIRECT"
    assert look(made, "203.0.113.1", 22) == "DIRECT"
    assert look(made, "203.0.113.1", 443) == "SNIFF"
    assert look(made, "203.0.113.1", 443, "near.example") == "DIRECT"
    assert look(made, "203.0.113.1", 443, "a.ads.example") == "REJECT"
    assert look(made, "203.0.113.1", 443, "far.example") == "USER"
    assert look(made, "203.0.113.1", 443, "far.example", "near.example") == "SNIFF"
    assert look(made, "203.0.113.1", 25) == "DIRECT", "a server-first port is not sniffed"
    assert look(made, "203.0.113.1", 53, "near.example", network="udp") == "SNIFF", "it may be DNS"
    assert look(made, "198.51.100.1", 25) == "USER"
    assert look(made, "2001:db8::1", 443, "near.example") == "DIRECT"


def test_modes() -> None:
    assert look(compiled(mode="off"), "10.0.0.1", 443) == "SNIFF"
    paranoid = compiled(mode="paranoid")
    assert look(paranoid, "203.0.113.1", 443, "near.example") == "SNIFF"
    assert look(paranoid, "10.0.0.1", 443) == "DIRECT"
    rules = {"rules": [{"action": "sniff"}, {"domain": "a.example", "outbound": "vps"},
                       {"ip_cidr": "203.0.113.0/24", "outbound": "direct"},
                       {"ip_cidr": "198.51.100.0/24", "action": "reject"}]}  # fmt: skip
    for mode, direct, rejected in (("strict", "SNIFF", "SNIFF"), ("balanced", "DIRECT", "SNIFF"),
                                   ("fast", "DIRECT", "REJECT")):  # fmt: skip
        made = compiled(rules, "vps2", mode)
        assert look(made, "203.0.113.1", 443) == direct, mode
        assert look(made, "198.51.100.1", 443) == rejected, mode
        assert look(made, "192.0.2.1", 443) == "SNIFF", mode
        assert look(made, "203.0.113.1", 443, "a.example") == "USER", mode


def test_relaxed_modes_tell_which_rules_they_skip() -> None:
    """Only rules that a sniff could still make hold, or not hold any more, where an address rule decides."""
    rules: Any = {"rules": [
        {"domain": "early.example", "outbound": "vps"}, {"port": 22, "outbound": "vps"}, {"action": "sniff"},
        {"domain": "a.example", "outbound": "vps"}, {"port": 25, "protocol": "tls", "outbound": "vps"},
        {"domain": "b.example", "outbound": "direct"}, {"network": "udp", "protocol": "quic", "action": "reject"},
        {"ip_cidr": "203.0.113.0/24", "outbound": "direct"}, {"domain": "c.example", "outbound": "vps"},
        {"ip_cidr": "198.51.100.0/24", "action": "reject"}, {"ip_cidr": "192.0.2.0/24", "outbound": "vps"},
    ]}  # fmt: skip

    def flow(address: str, port: int = 443, network: Any = "tcp") -> Flow:
        return Flow(network, "gateway", "tproxy", Address.of("192.168.8.2", 0), Address.of(address, port), "")

    strict, balanced, fast = (compiled(rules, "vps2", mode) for mode in ("strict", "balanced", "fast"))
    assert (strict.skipped, balanced.skipped, fast.skipped) == ((), (3, 6), (3, 5, 6, 8))
    assert strict.skips(flow("203.0.113.1")) == ()
    assert compiled(rules, "vps2", "off").skips(flow("203.0.113.1")) == ()
    for made in (balanced, fast):
        assert made.skips(flow("203.0.113.1")) == (3,)
        assert made.skips(flow("203.0.113.1", network="udp")) == (3, 6)
        assert made.skips(flow("203.0.113.1", 25)) == (), "a server-first port is never sniffed"
        assert made.skips(flow("203.0.113.1", 22)) == ()
        assert made.skips(flow("192.0.2.1")) == (), "in userspace nothing is skipped"
    assert balanced.skips(flow("198.51.100.1")) == ()
    assert fast.skips(flow("198.51.100.1")) == (3, 5, 8)


def test_a_rule_that_a_sniff_would_undo_is_skipped_too() -> None:
    rules: Any = {"rules": [{"action": "sniff"}, {"type": "logical", "mode": "and", "outbound": "direct", "rules": [
        {"ip_cidr": "203.0.113.0/24"}, {"domain": "a.example", "invert": True},
    ]}]}  # fmt: skip
    made = compiled(rules, "vps", "balanced")
    assert look(made, "203.0.113.1", 443) == "DIRECT"
    assert made.skipped == (1,)


def test_what_a_sniff_could_change_is_among_the_skipped() -> None:
    """Of each flow that the kernel keeps by address, the first rule that fares otherwise once the flow is looked at and
    sent elsewhere."""
    told = 0
    for seed in range(2000, 2120):
        rng = random.Random(seed)
        case = brute.configuration(rng, "fast" if seed % 2 else "balanced")
        judge = Judge(case)
        for key in brute.keys(rng, 10):
            got = brute.kernel(case.compiled, replace(key, names=()))
            if key.names or got in (Verdict.SNIFF, Verdict.USER) or key.process is not None or key.source is None:
                continue
            for flow in judge.flows(key):
                skips = case.compiled.skips(flow)
                assert set(skips) <= set(case.compiled.skipped), f"seed {seed}"
                blind = Trace()
                decide(case.engine, flow, Shown(), (), blind)
                for shown in judge.shown(key, ["", *judge.names]):
                    seen = Trace()
                    if verdict_of({decide(case.engine, flow, shown, (), seen).outcome}) is got:
                        continue
                    rules = case.route.rules
                    first = next(a[0] for a, b in zip(blind.steps, seen.steps, strict=False)
                                 if a[1] != b[1] and ends(rules[a[0]].action))  # fmt: skip
                    assert first in skips, f"seed {seed}: {key} {shown}\n{case.raw}"
                    told += 1
    assert told > 100


def test_a_bypass_is_a_persons_own_word() -> None:
    """Above what would have to be sniffed, below what the packet shows."""
    rules: Any = {"rules": [
        {"action": "sniff"}, {"domain": "far.example", "outbound": "vps"}, {"port": 80, "action": "reject"},
        {"ip_cidr": "203.0.113.0/24", "action": "bypass"}, {"domain_suffix": "near.example", "action": "bypass"},
        {"domain": "other.example", "outbound": "vps"},
    ]}  # fmt: skip
    for mode in ("strict", "paranoid", "balanced", "fast"):
        made = compiled(rules, "vps2", mode)
        assert look(made, "203.0.113.1", 443) == "DIRECT", mode
        assert look(made, "192.0.2.1", 443) == "SNIFF", mode
        assert look(made, "203.0.113.1", 443, "other.example") == "DIRECT", mode
        assert look(made, "203.0.113.1", 80) in ("SNIFF", "REJECT"), mode
        assert look(made, "203.0.113.1", 80, "a.near.example") in ("SNIFF", "REJECT"), mode
    assert look(compiled(rules, "vps2"), "203.0.113.1", 443, "far.example") == "USER"
    assert look(compiled(rules, "vps2"), "192.0.2.1", 443, "a.near.example") == "DIRECT"
    assert look(compiled(rules, "vps2"), "192.0.2.1", 443, "a.near.example", "other.example") == "SNIFF"
    assert look(compiled(rules, "vps2", "paranoid"), "192.0.2.1", 443, "a.near.example") == "SNIFF"
    assert look(compiled(rules, mode="off"), "203.0.113.1", 443) == "SNIFF"
    rules["rules"][3]["outbound"] = "vps"
    assert look(compiled(rules), "203.0.113.1", 443) == "DIRECT", "the outbound is for userspace alone"


def test_a_bypass_on_one_port_is_no_override_on_another() -> None:
    """Programs that differ in nothing else are two profiles."""
    port = [{"ip_cidr": "203.0.113.0/24", "port": 80, "action": "bypass"},
            {"ip_cidr": "203.0.113.0/24", "port": 81, "action": "route-options", "override_port": 4444}]  # fmt: skip
    more = [{"action": "sniff"}, {"domain": "a.example", "outbound": "vps"}]
    for first in (port, port[::-1]):
        made = compiled({"rules": [*first, *more]}, "vps2")
        assert (look(made, "203.0.113.1", 80), look(made, "203.0.113.1", 81)) == ("DIRECT", "SNIFF")


def test_a_bypass_does_not_come_before_what_certainly_ends_above() -> None:
    """Every name is refused: the one below ``example`` by the first rule, all the others by the second."""
    rules: Any = {"rules": [
        {"action": "sniff"}, {"domain_suffix": "example", "action": "reject"},
        {"domain": "a.example", "invert": True, "action": "reject"}, {"port": 443, "action": "bypass"},
    ]}  # fmt: skip
    assert look(compiled(rules), "203.0.113.1", 443) == "REJECT"
    rules["rules"][1]["domain_suffix"] = "b.example"
    assert look(compiled(rules), "203.0.113.1", 443) == "DIRECT"


def test_every_source_is_no_question_of_a_socket() -> None:
    rules = {"rules": [{"source_ip_cidr": ["0.0.0.0/0", "::/1"], "action": "bypass"}]}
    made, (four, six) = compiled(rules, "vps"), map(ip_address, ("192.0.2.1", "2001:db8::1"))
    assert made.lookup("tcp", 443, 4, int(four), socket=0)[1] is Verdict.DIRECT
    assert made.lookup("tcp", 443, 6, int(six), socket=0)[1] is Verdict.USER


@pytest.mark.slow
def test_rules_that_no_order_of_questions_makes_small() -> None:
    """Of each of many users first one thing and then another: 2 ** 26 combinations."""
    users = range(1000, 1026)
    rules = {"rules": [
        {"action": "sniff"}, *({"user_id": user, "port": 26, "action": "reject"} for user in users),
        *({"user_id": user, "domain": f"d{user}.example", "outbound": "vps"} for user in users),
    ]}  # fmt: skip
    made = compiled(rules)
    assert len(made._compiler.space) < 4 * program.MOST_NODES
    assert look(made, "203.0.113.1", 443, "d1000.example") == "DIRECT", "no user of this host"
    ip = int(ip_address("203.0.113.1"))
    for name, port, verdict in (("d1000.example", 443, "SNIFF"), ("other.example", 443, "DIRECT"), ("", 26, "SNIFF")):
        found = made.lookup("tcp", port, 4, ip, socket=30, names=(name,) if name else ())
        assert found[1].name == verdict, (name, port)


def test_two_proxies_are_uncertain_one_is_not() -> None:
    rules = {"rules": [{"action": "sniff"}, {"domain": "a.example", "outbound": "vps"}]}
    assert look(compiled(rules, "vps"), "192.0.2.1", 443) == "USER"
    assert look(compiled(rules, "vps2"), "192.0.2.1", 443) == "SNIFF"


def test_names_that_cannot_be_together_do_not_spoil_a_verdict() -> None:
    rules = {"rules": [{"action": "sniff"},
                       {"domain_suffix": "example", "outbound": "direct"},
                       {"domain": "a.example", "outbound": "vps"}]}  # fmt: skip
    assert look(compiled(rules), "192.0.2.1", 443) == "DIRECT"


def test_processes() -> None:
    rules = {"rules": [{"process_path": ["/usr/bin/curl"], "outbound": "vps"},
                       {"process_name": "ssh", "user": "alice", "outbound": "vps"},
                       {"user_id": [38], "action": "reject"}]}  # fmt: skip
    inputs = Inputs({"direct": "direct"}, users={"alice": 1000})
    made = compile_rules(parse_route(rules).rules, "direct", {}, inputs)
    plan, address = made.processes, int(ip_address("192.0.2.1"))

    def verdict(mask: int) -> str:
        return made.lookup("tcp", 443, 4, address, socket=dict(plan.classes)[mask])[1].name

    curl, ssh, alice, ntp = (
        dict(plan.paths)["/usr/bin/curl"],
        dict(plan.names)["ssh"],
        *map(dict(plan.uids).get, (1000, 38)),
    )
    assert verdict(0) == "DIRECT"
    assert verdict(curl) == verdict(curl | alice) == verdict(ssh | alice) == "USER"
    assert verdict(ssh) == verdict(alice) == "DIRECT"
    assert verdict(ntp) == "REJECT"
    assert made.lookup("tcp", 443, 4, address, socket=30)[1] is Verdict.SNIFF
    assert look(made, "192.0.2.1", 443) == "DIRECT", "a forwarded flow has no process"


@pytest.mark.slow
def test_more_than_fits_is_sniffed() -> None:
    rules = {"rules": [{"port": 1000 + n, "ip_cidr": f"192.0.2.{n}", "outbound": "vps"} for n in range(70)]
             + [{"process_name": f"p{n}", "port": 2000 + n, "outbound": "vps"} for n in range(40)]}  # fmt: skip
    made = compiled(rules)
    assert len(made.steering.profiles) == compiler.MOST_PROFILES
    assert len(made.steering.local) <= compiler.MOST_CLASSES
    assert look(made, "203.0.113.1", 80) == "DIRECT"
    assert look(made, "192.0.2.69", 1069) == "SNIFF"


def test_certain() -> None:
    made = compiled()

    def certain(address: str, port: int, **findings: Any) -> bool:
        ends = Address.of("192.168.8.2", 4000), Address.of(address, port)
        return made.certain(Flow("tcp", "gateway", "tproxy", *ends), Findings(**findings))

    assert certain("10.0.0.1", 443)
    assert certain("203.0.113.1", 25)
    assert not certain("203.0.113.1", 443)
    assert not certain("203.0.113.1", 443, learned=("near.example",)), "the flow may show another name"


def test_real_lists(shared: Path) -> None:
    folder = shared / "data" / "rule-set"
    route = parse_route({
        "rules": [{"ip_is_private": True, "outbound": "direct"}, {"action": "sniff"},
                  {"rule_set": "google", "outbound": "vps"}, {"rule_set": ["cn", "geoip"], "outbound": "direct"}],
        "rule_set": [{"tag": tag, "type": "local", "path": f"{name}.srs"} for tag, name in
                     (("cn", "geosite-cn"), ("google", "geosite-google"), ("geoip", "geoip-cn"))],
    })  # fmt: skip
    made = compile_rules(route.rules, "vps", load_all(route, folder), Inputs({"direct": "direct"}))
    assert look(made, "203.0.113.1", 443, "www.baidu.com") == "DIRECT"
    assert look(made, "203.0.113.1", 443, "www.google.com") == "USER"
    assert look(made, "1.2.4.8", 25) == "DIRECT"
    profile = made.steering.profiles[made.lookup("tcp", 25, 4, 0, source=0)[0]]
    assert len(profile.spans4) > 4000
    assert all(a.last < b.first for a, b in zip(profile.spans4, profile.spans4[1:], strict=False))


@pytest.fixture
def shared() -> Path:
    found = Path(__file__).resolve().parents[3].parent / "shared"
    if not found.is_dir():
        pytest.skip(f"SKIPPED LOUDLY: no {found}: the real rule sets are not tested")
    return found


@pytest.mark.parametrize("final", ["direct", "vps"])
def test_fake_addresses_are_userspaces(final: str) -> None:
    """Whatever a rule says of the address: it stands for a name, which the kernel does not know."""
    rules = [
        {"ip_cidr": "198.18.0.0/16", "outbound": "direct"},
        {"ip_cidr": "198.18.0.0/15", "action": "reject"},
        {"ip_cidr": "198.19.0.0/16", "action": "bypass"},
        {"ip_cidr": "fc00::/7", "outbound": "direct"},
    ]
    inputs = Inputs({"direct": "direct"}, fakes=("198.18.0.0/15", "fc00::/18"))
    compiled = compile_rules(parse_route({"rules": rules}).rules, final, {}, inputs)
    for mode in ("strict", "balanced", "fast", "paranoid"):
        compiled = compile_rules(parse_route({"rules": rules}).rules, final, {}, replace(inputs, mode=mode))
        for network in ("tcp", "udp"):
            for text, wanted in (
                ("198.18.0.1", Verdict.USER),
                ("198.19.255.255", Verdict.USER),
                ("198.20.0.0", None),
                ("fc00::1", Verdict.USER),
                ("fc00:4000::1", Verdict.DIRECT),
            ):
                ip = ip_address(text)
                family = 4 if ip.version == 4 else 6
                client = int(ip_address("192.168.1.2" if family == 4 else "2001:db8:8::2"))
                found = compiled.lookup(network, 443, family, int(ip), source=client)[1]
                assert found is (wanted or (Verdict.DIRECT if final == "direct" else Verdict.USER)), (mode, text)
                if wanted is Verdict.USER:
                    assert compiled.lookup(network, 443, family, int(ip), socket=0)[1] is wanted, "of this host too"
