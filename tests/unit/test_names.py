"""What is brought to the kernel of names, in which order, and what happens where it refuses."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.errors import ConfigError, KernelError
from gateway.core.flow import Device, Flow
from gateway.kernel.plan import MOST_LEARNED, LearnedChange, Verdict
from gateway.names import Names, Wishes
from gateway.options import decode_section
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.explain import Query
from gateway.route.hints import LASTS
from gateway.route.options import parse_route
from gateway.route.prefixes import DAY
from gateway.steering import policy, wishes

RULES = [{"action": "sniff"}, {"domain_suffix": "far.example", "outbound": "vps"}]
ME, YOU = ip_address("192.0.2.2"), ip_address("192.0.2.3")
SIX = ip_address("2001:db8:8::2")
SITE, SITE6 = ip_address("198.51.100.1"), ip_address("2001:db8:2::1")
BOTH = pytest.mark.parametrize(("client", "site"), [(ME, SITE), (SIX, SITE6)], ids=["v4", "v6"])


def compiled(rules: Any = RULES) -> Compiled:
    return compile_rules(parse_route({"rules": rules}).rules, "direct", {}, Inputs({"direct": "direct"}))


class Steerer:
    """Sets as the kernel would hold them, and all that was asked in order."""

    def __init__(self) -> None:
        self.sets: dict[str, dict[bytes, int]] = {}
        self.learned: dict[tuple[int, int], Verdict | None] = {}
        self.asked: list[str] = []
        self.refuse = ""
        self.errno = errno.EPERM
        self.room = 1 << 16

    def _do(self, what: str) -> None:
        self.asked.append(what)
        if what == self.refuse:
            raise KernelError("nft elements", self.errno)

    def elements(self, changes: list[LearnedChange]) -> list[LearnedChange]:
        self._do("elements")
        fit, full = changes[: self.room], changes[self.room :]
        self.learned |= {(one.profile, one.address): one.new for one in fit}
        return full

    def put(self, name: str, key: bytes, timeout: int) -> None:
        self._do("put")
        self.sets.setdefault(name, {})[key] = timeout

    def take(self, name: str, keys: list[bytes]) -> None:
        self._do("take")
        for key in keys:
            del self.sets[name][key]


class House:
    def __init__(self, wanted: Wishes, monkeypatch: pytest.MonkeyPatch, rules: Any = RULES) -> None:
        monkeypatch.setattr("gateway.names.is_local", lambda ip: False)
        self.now = 100.0
        self.failures: list[KernelError] = []
        self.names = Names(compiled(rules), wanted, lambda: self.now, self.failures.append)
        self.kernel = Steerer()
        self.names.steerer = self.kernel  # type: ignore[assignment]

    def flow(
        self, name: str, direct: bool, client: Any = ME, site: Any = SITE, network: Any = "tcp", device: Any = None
    ) -> None:
        flow = Flow(network, "gateway", "tproxy", Address(client, 4000), Address(site, 443), device=device)
        self.names.decided(flow, name, direct)

    def judged(self, client: Any = ME, site: Any = SITE) -> tuple[Verdict, str]:
        query = Query("tcp", 443, site, source=Address(client, 0))
        profile, nameless = compiled().lookup("tcp", 443, site.version, int(site), source=int(client))
        return self.names.judge(query, profile, nameless)


Make = Callable[..., House]


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Make:
    return lambda rules=RULES, **wanted: House(Wishes(**wanted), monkeypatch, rules)


@BOTH
def test_a_hint_comes_with_a_sniff_and_goes_with_a_name(house: Make, client: Any, site: Any) -> None:
    made = house(hints=True)
    hint = f"hint{site.version}"
    made.flow("near.example", True, client, site)
    key = client.packed + site.packed + (443).to_bytes(2, "big") + b"\0\0"
    assert made.kernel.sets == {hint: {key: LASTS}}
    assert made.judged(client, site)[0] is Verdict.DIRECT
    made.names.learn("other.example", client, [(site, 60)])
    assert key in made.kernel.sets[hint], "judged alike"
    made.names.learn("www.far.example", client, [(site, 60)])
    assert not made.kernel.sets[hint]
    made.flow("near.example", True, client, site)
    assert not made.kernel.sets[hint], "and comes no more"
    assert made.judged(client, site)[0] is Verdict.SNIFF


MAC = "02:00:00:00:00:01"


@pytest.mark.parametrize("rule", [{"source_mac_address": [MAC]}, {"source_interface": ["lan1"]}], ids=["mac", "link"])
@pytest.mark.parametrize("order", ["name first", "hint first"])
def test_a_hint_is_judged_by_the_rules_of_its_device(house: Make, rule: Any, order: str) -> None:
    made = house(rules=[RULES[0], {**rule, **RULES[1]}], hints=True)
    ours, other = Device(MAC, "lan1"), Device("02:00:00:00:00:02", "lan0")
    steps = [lambda: made.names.learn("www.far.example", ME, [(SITE, 60)]),
             lambda: made.flow("near.example", True, device=ours)]  # fmt: skip
    for step in steps if order == "name first" else reversed(steps):
        step()
    assert not made.kernel.sets.get("hint4"), "by the other name it is proxied for this device"
    made.flow("near.example", True, client=YOU, device=other)
    assert len(made.kernel.sets["hint4"]) == 1, "and direct for all others"


def test_no_hint_where_it_could_be_wrong(house: Make) -> None:
    strict = house()
    strict.flow("near.example", True)
    assert not strict.kernel.sets
    made = house(hints=True)
    made.flow("", True)
    made.flow("near.example", True, network="udp")
    made.flow("x.far.example", False)
    made.flow("near.example", True)
    assert not made.kernel.sets
    made.flow("near.example", True, client=YOU)
    assert not made.kernel.sets, "the address has been called by another name"
    made.now += 1000.0
    made.names.expire()
    made.flow("near.example", True)
    assert len(made.kernel.sets["hint4"]) == 1
    made.flow("near.example", False)
    assert not made.kernel.sets["hint4"], "by another rule, whatever it is"


@BOTH
def test_a_shared_prefix_is_confirmed_by_the_client_itself(house: Make, client: Any, site: Any) -> None:
    made = house(shared=True)
    for number, name in enumerate(("near.example", "a.far.example", "other.example")):
        made.names.learn(name, client, [(site + number, 60)])
    ((prefix, timeout),) = made.kernel.sets[f"shared{site.version}"].items()
    assert timeout == DAY
    assert prefix == (bytes([198, 51, 100, 0]) if site.version == 4 else SITE6.packed[:6] + bytes(10))
    assert made.judged(client, site)[0] is Verdict.SNIFF
    made.flow("unknown.example", True, client, site)
    assert f"hint{site.version}" not in made.kernel.sets, "what our DNS did not say confirms nothing"
    made.flow("near.example", True, client, site)
    assert made.judged(client, site)[0] is Verdict.DIRECT
    assert len(made.kernel.sets[f"hint{site.version}"]) == 1


def test_a_reload_may_begin_to_watch_prefixes(house: Make) -> None:
    made = house()
    learned, _ = made.names.rebuild(compiled(), Wishes(shared=True))
    made.names.adopt(learned, compiled(), Wishes(shared=True))
    for number, name in enumerate(("near.example", "a.far.example", "other.example")):
        made.names.learn(name, ME, [(SITE + number, 60)])
    assert list(made.kernel.sets["shared4"].values()) == [DAY]
    made.now += DAY + 1
    made.names.expire()
    assert made.names.tables()["shared prefixes"]["now"] == 0


def test_more_that_is_over_is_told(house: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.route.learned.MOST_TOUCHED", 2)
    made = house()
    for number in range(3):
        made.names.learn("near.example", ME, [(SITE + number, 60)])
    assert not made.names.expire()
    made.now += 1000.0
    assert [made.names.expire() for _ in range(2)] == [True, False]
    assert set(made.kernel.learned.values()) == {None}


def test_hints_go_before_the_rules_do(house: Make) -> None:
    made = house(hints=True)
    made.flow("near.example", True)
    made.names.rebuild(compiled([]), Wishes(hints=True))
    assert made.kernel.asked[-1] == "take"
    assert not made.kernel.sets["hint4"]


def test_a_full_set_costs_a_sniff_and_a_refused_name_all_belief(house: Make) -> None:
    made = house(hints=True)
    made.kernel.refuse, made.kernel.errno = "put", errno.ENFILE
    made.flow("near.example", True)
    assert not made.failures
    assert made.names.tables()["hints"]["now"] == 0
    made.kernel.refuse, made.kernel.errno = "elements", errno.EPERM
    made.names.learn("near.example", ME, [(SITE, 60)])
    assert [error.errno for error in made.failures] == [errno.EPERM]
    other = house(hints=True)
    other.flow("near.example", True)
    other.kernel.refuse = "take"
    other.names.learn("www.far.example", ME, [(SITE, 60)])
    assert len(other.failures) == 1, "a hint that cannot be taken back"


def test_what_has_no_room_in_a_learned_set_is_not_taken_for_learned(house: Make) -> None:
    made = house()
    made.kernel.room = 0
    made.names.learn("near.example", ME, [(SITE, 60)])
    assert not made.failures
    assert made.judged() == (Verdict.SNIFF, "")
    assert made.names.tables()["fullest learned set"] == {"now": 0, "most": MOST_LEARNED, "evicted": 1}
    made.kernel.room = 1
    made.names.learn("near.example", ME, [(SITE, 60)])
    assert set(made.kernel.learned.values()) == {Verdict.DIRECT}, "written once there is room"
    assert made.judged() == (Verdict.DIRECT, "")


def test_nothing_of_a_table_that_is_gone_is_believed(house: Make) -> None:
    made = house(rules=[{"action": "sniff"}, {"domain": "a.example", "outbound": "vps"}], hints=True, shared=True)
    rules = made.names._compiled

    def say() -> None:
        for number, name in enumerate(("near.example", "a.example", "b.example")):
            made.names.learn(name, ME, [(SITE + number, 60)])
        made.flow("near.example", True)

    def held() -> Any:
        return made.kernel.sets, {key: one for key, one in made.kernel.learned.items() if one is not None}

    say()
    before = held()
    assert before[0]["hint4"] and before[0]["shared4"] and before[1]  # noqa: PT018
    made.names.steerer = None
    made.flow("www.near.example", True)
    made.names.learn("a.example", ME, [(SITE, 60)])
    learned, changes = made.names.rebuild(rules, Wishes(True, True))
    made.kernel = Steerer()
    made.names.steerer = made.kernel  # type: ignore[assignment]
    made.names.adopt(learned, rules, Wishes(True, True))
    assert not changes
    assert made.names.owners(SITE, ME) == ()
    assert made.judged()[0] is Verdict.SNIFF
    say()
    assert held() == before, "all of it is written again"


def test_what_is_explained_of_a_name_that_was_shown(house: Make) -> None:
    made = house()
    made.names.learn("near.example", ME, [(SITE, 60)])
    assert made.judged() == (Verdict.DIRECT, "")
    made.flow("www.far.example", False, client=YOU)
    verdict, why = made.judged()
    assert verdict is Verdict.SNIFF
    assert "near.example, www.far.example" in why
    assert made.names.tables()["shown"]["now"] == 1


def test_wishes_by_mode() -> None:
    for mode, kernel, wanted in (("strict", {}, (False, False)), ("balanced", {}, (True, True)),
                                 ("fast", {}, (True, False)), ("paranoid", {}, (False, False)),
                                 ("strict", {"hints": "on", "shared_prefixes": "on"}, (True, True)),
                                 ("balanced", {"hints": "off", "shared_prefixes": "off"}, (False, False))):  # fmt: skip
        assert wishes(decode_section({"kernel": {"mode": mode, **kernel}}, "gateway")) == wanted


@pytest.mark.parametrize("field", ["hints", "shared_prefixes"])
@pytest.mark.parametrize("mode", ["paranoid", "off"])
def test_a_wish_that_no_name_can_fulfil(field: str, mode: str) -> None:
    with pytest.raises(ConfigError, match="need a mode that believes names: strict") as error:
        decode_section({"kernel": {"mode": mode, field: "on"}}, "gateway")
    assert error.value.path == "gateway.kernel"
    with pytest.raises(ConfigError, match="go by names, and learn is false") as error:
        decode_section({"learn": False, "kernel": {field: "on"}}, "gateway")
    assert error.value.path == "gateway.kernel"
    assert wishes(decode_section({"learn": False, "kernel": {"mode": "balanced"}}, "gateway")) == (False, False)


def test_the_dns_policy() -> None:
    given = {"doh": ["DNS.example.", "192.0.2.1", "2001:db8::1/48"], "ech": "strip"}
    options = decode_section({"dns_policy": given}, "gateway").dns_policy
    assert (options.domains, options.prefixes) == (["dns.example"], ["192.0.2.1/32", "2001:db8::/48"])
    made = policy(decode_section({"dns_policy": given}, "gateway"))
    assert (made.refused, made.canary, made.ddr, made.ech) == (frozenset({"dns.example"}), True, True, True)
    plain = decode_section({}, "gateway").dns_policy
    assert (plain.dot, plain.doh, plain.canary, plain.ddr, plain.ech) == ("allow", [], True, "empty", "keep")
    for wrong in ("https://dns.example/", "192.0.2.300", "", "a b", "192.0.2.1:443"):
        with pytest.raises(ConfigError, match="neither a domain name nor an address") as error:
            decode_section({"dns_policy": {"doh": [wrong]}}, "gateway")
        assert error.value.path == "gateway.dns_policy"
