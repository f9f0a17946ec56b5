"""The compiler against the engine: a kernel verdict exactly where every completion of what a packet hides agrees."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow
from gateway.kernel.plan import Verdict
from gateway.route import compile as compiler
from gateway.route import feasible, lower, program
from gateway.route.action import Bypass, HijackDNS, Reject, Route, Sniff
from gateway.route.compile import Inputs, compile_rules
from gateway.route.match import Subject, matches
from gateway.route.options import parse_route
from gateway.route.ruleset.load import load_all

SPEC = importlib.util.spec_from_file_location("brute", Path(__file__).with_name("brute.py"))
assert SPEC is not None
assert SPEC.loader is not None
brute: Any = importlib.util.module_from_spec(SPEC)
sys.modules["brute"] = brute
SPEC.loader.exec_module(brute)
KEYS = 12


def disagreements(seeds: range, mix: Counter[str]) -> list[str]:
    """Where kernel and judge differ. A SNIFF too many counts only where the compiler claims to be exact."""
    wrong = []
    for seed in seeds:
        rng = random.Random(seed)
        case = brute.configuration(rng)
        full = len(case.compiled.steering.profiles) == compiler.MOST_PROFILES
        for key in brute.keys(rng, KEYS):
            inexact = full or not key.met
            outcomes = brute.everything(case, key)
            want, got = brute.expected(outcomes), brute.kernel(case.compiled, key)
            mix[got.name] += 1
            if want is not got and not (got is Verdict.SNIFF and inexact):
                wrong.append(f"seed {seed}: {key}: kernel {got.name}, judge {want.name} {outcomes}\n{case.raw}")
    return wrong


@pytest.mark.parametrize("part", range(4))
def test_kernel_agrees_with_every_completion(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    mix: Counter[str] = Counter()
    wrong = disagreements(range(part * 60, part * 60 + 60), mix)
    with capsys.disabled():
        print(f"\n  verdicts of {sum(mix.values())} keys: {dict(mix)}")
    assert not wrong, "\n".join(wrong[:3])
    assert mix["DIRECT"] > 50
    assert mix["REJECT"] > 20
    assert mix["SNIFF"] > 20
    assert mix["USER"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 11))
def test_kernel_agrees_with_every_completion_at_length(part: int) -> None:
    wrong = disagreements(range(part * 1000, part * 1000 + 150), Counter())
    assert not wrong, "\n".join(wrong[:3])


def test_certain_is_exact_about_sniffing() -> None:
    """``certain`` says yes only where no protocol and no shown name changes the outcome."""
    said = 0
    for seed in range(600, 680):
        rng = random.Random(seed)
        case = brute.configuration(rng)
        for key in brute.keys(rng, KEYS):
            flow = next(brute.flows(key, case))
            learned = (key.name,) if key.name else ()
            if not case.compiled.certain(flow, Findings(learned=learned)):
                continue
            said += 1
            for protocol in ("", *brute.PROTOCOLS[key.network]):
                for name in ("", *brute.NAMES) if protocol in brute.NAMED else ("",):
                    one = brute.truth(case.engine, flow, protocol, name, learned)
                    assert one == brute.truth(case.engine, flow, "", "", learned), f"seed {seed}: {key}"
    assert said > 100


def test_the_engine_agrees_with_the_lowered_rules() -> None:
    """USER is as sharp as DIRECT: a certain outbound is the one that the engine picks for every completion."""
    for seed in range(500, 540):
        rng = random.Random(seed)
        case = brute.configuration(rng)
        for key in brute.keys(rng, KEYS):
            if brute.kernel(case.compiled, key) is Verdict.USER:
                assert len(brute.everything(case, key)) == 1, f"seed {seed}: {key}"


def _without(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, mutant: Callable[..., Any]) -> None:
    monkeypatch.setattr(owner, name, mutant)


def _forget_invert(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lower.Lowering._logical

    def mutant(self: Any, rule: Any, marks: Any) -> Any:
        held, after = original(self, rule, marks)
        return (self.space.negate(held) if rule.invert else held), after

    _without(monkeypatch, lower.Lowering, "_logical", mutant)


def _forget_shared_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    original = lower.Lowering._sets
    _without(
        monkeypatch, lower.Lowering, "_sets",
        lambda self, rule, marks: (original(self, rule, lower.Marks(match_source=rule.match_source))[0], marks),
    )  # fmt: skip


def _forget_sniffed_names(monkeypatch: pytest.MonkeyPatch) -> None:
    original = program._finding
    _without(monkeypatch, program, "_finding", lambda *args: (original(*args)[0], False, False))


def _forget_sniffed_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    original = program._finding
    _without(monkeypatch, program, "_finding", lambda *args: (frozenset(), *original(*args)[1:]))


def _take_the_first_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, program._Run, "done", lambda self: bool(self.ends))


def _swap_families(monkeypatch: pytest.MonkeyPatch) -> None:
    original = compiler._Compiler._answers
    _without(
        monkeypatch, compiler._Compiler, "_answers",
        lambda self, kind, mask: original(self, kind, mask & ~2 if kind == "dst" else mask),
    )  # fmt: skip


def _ports_off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    original = compiler._Compiler._ports
    _without(
        monkeypatch, compiler._Compiler, "_ports",
        lambda self: [(s._replace(first=s.first + 1, last=s.last + 1), never) for s, never in original(self)],
    )  # fmt: skip


def _nothing_is_feasible_together(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, feasible.Names, "possible", lambda self, assigned: not any(assigned.values()))


def _everything_is_feasible(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, feasible.Names, "possible", lambda self, assigned: True)


def _source_ports_are_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    _without(monkeypatch, compiler._Compiler, "_port_segments", lambda self, kind: [compiler.Segment(0, 65535, 0)])


MUTANTS = [
    _forget_invert, _forget_shared_marks, _forget_sniffed_names, _forget_sniffed_protocols, _take_the_first_outcome,
    _swap_families, _ports_off_by_one, _nothing_is_feasible_together, _source_ports_are_zero,
    pytest.param(_everything_is_feasible, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__.strip("_"))
def test_a_wrong_compiler_is_caught(mutant: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    mutant(monkeypatch)
    for start in range(0, 400, 10):
        try:
            if disagreements(range(start, start + 10), Counter()):
                return
        except StopIteration:
            return  # a port without a profile
    pytest.fail("the property test does not see this mutant")


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


def held(case: Any, index: int, key: Any) -> set[bool]:
    """Whether a rule holds, over all completions of what the packet hides; of protocols and names those that a sniff
    before it could have found."""
    out = set()
    sniffs = [rule.action for rule in case.route.rules[:index] if isinstance(rule.action, Sniff)]
    found = {one for action in sniffs for one in action.protocols(key.network)} if key.port != 25 else set()
    found -= {"dns"} if key.port != 53 else set()
    for flow in brute.flows(key, case):
        for protocol in ("", *found):
            shown = ("",) if protocol not in brute.NAMED else (key.name,) if key.name else ("", *brute.NAMES)
            for name in shown:
                findings = Findings(protocol=protocol, domain=name, learned=(key.name,) if key.name else ())
                out.add(matches(case.route.rules[index].match, Subject.of(flow, findings, case.sets)))
    return out


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
def test_a_bypass_holds_where_the_packet_shows_it(part: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Random rules, some of them bypasses. Direct where not every completion is, needs a bypass that certainly holds
    below nothing that certainly ends; where one holds below nothing that could, direct it is."""
    mix: Counter[str] = Counter()
    for seed in range(part * 40, part * 40 + 40):
        rng = random.Random(seed)
        raw = dict(brute.configuration(rng).raw)
        final = raw.pop("final")
        for rule in raw["rules"]:
            if "outbound" in rule and rng.random() < 0.5:
                rule["action"] = "bypass"
                if rng.random() < 0.7:
                    del rule["outbound"]
        case = brute.build(raw, final)
        text = str(raw)
        crowded = len(case.compiled.steering.profiles) == compiler.MOST_PROFILES
        for key in brute.keys(rng, KEYS):
            full = crowded or not key.met
            # A source that any address has (0.0.0.0/0) is open of a local flow.
            inexact = full or (key.source is None and ("source_ip" in text or "match_source" in text))
            outcomes, got = brute.everything(case, key), brute.kernel(case.compiled, key)
            word = possible = False
            for index, rule in enumerate(case.route.rules):
                ends = isinstance(rule.action, Route | Reject | HijackDNS)
                found = held(case, index, key) if ends or isinstance(rule.action, Bypass) else {False}
                if isinstance(rule.action, Bypass) and (found == {True} or True in found):
                    word = word or found == {True}
                    if found == {True} and not possible and not inexact:
                        mix["must"] += 1
                        assert got is Verdict.DIRECT, f"seed {seed}: {key}: {got.name}\n{case.raw}"
                    if found == {True}:
                        break
                    possible = possible or bool(rule.action.outbound)
                elif found == {True}:
                    break
                else:
                    possible = possible or True in found
            if got is Verdict.DIRECT and outcomes != {"direct"}:
                mix["word"] += 1
                assert word, f"seed {seed}: {key}: {outcomes}\n{case.raw}"
            elif not word:
                mix["plain"] += 1
                want = brute.expected(outcomes)
                assert got is want or (got is Verdict.SNIFF and full), f"seed {seed}: {key}: {got}\n{case.raw}"
    with capsys.disabled():
        print(f"\n  bypass: {dict(mix)}")
    assert mix["must"] > 20
    assert mix["word"] > 20


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


def test_more_than_fits_is_sniffed() -> None:
    rules = {"rules": [{"port": 1000 + n, "ip_cidr": f"192.0.2.{n}", "outbound": "vps"} for n in range(40)]
             + [{"process_name": f"p{n}", "port": 2000 + n, "outbound": "vps"} for n in range(40)]}  # fmt: skip
    made = compiled(rules)
    assert len(made.steering.profiles) == compiler.MOST_PROFILES
    assert len(made.steering.local) <= compiler.MOST_CLASSES
    assert look(made, "203.0.113.1", 80) == "DIRECT"
    assert look(made, "192.0.2.39", 1039) == "SNIFF"


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
