"""Learned names: what reaches the kernel's maps, conflicts, expiry, bounds."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from gateway.kernel.plan import LearnedChange, Verdict
from gateway.route import elements
from gateway.route import learned as module
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.learned import Learned
from gateway.route.options import parse_route
from gateway.route.shares import share_of

A, B = ip_address("203.0.113.1"), ip_address("2001:db8::1")
ME, YOU = ip_address("192.168.8.2"), ip_address("192.168.8.3")
RULES = [{"action": "sniff"}, {"domain_suffix": "far.example", "outbound": "vps"},
         {"domain_suffix": "bad.example", "action": "reject"}]  # fmt: skip


def compiled(
    rules: Any = RULES, final: str = "direct", mode: Any = "strict", learn: bool = True
) -> Compiled:  # fmt: skip
    inputs = Inputs({"direct": "direct"}, mode=mode, learn=learn)
    return compile_rules(parse_route({"rules": rules}).rules, final, {}, inputs)


class Kernel:
    """The maps as the writer would leave them."""

    def __init__(self) -> None:
        self.maps: dict[tuple[int, int, int], Verdict] = {}

    def apply(self, changes: list[LearnedChange]) -> None:
        for one in changes:
            key = (one.profile, one.family, one.address)
            assert self.maps.get(key) is one.old
            if one.new is None:
                del self.maps[key]
            else:
                assert one.timeout > 0
                self.maps[key] = one.new

    def keep(self, learning: set[int]) -> None:
        """A new table: what has no place in it is gone."""
        self.maps = {key: verdict for key, verdict in self.maps.items() if key[0] in learning}

    def at(self, address: Any) -> set[str]:
        return {v.name for (_, _, number), v in self.maps.items() if number == int(address)}


def test_one_name() -> None:
    table, kernel = Learned(compiled()), Kernel()
    changes = table.learn("Near.Example.", ME, [(A, 300), (B, 5)], 0.0)
    kernel.apply(changes)
    assert kernel.at(A) == kernel.at(B) == {"DIRECT"}
    assert {one.timeout for one in changes if one.address == int(A)} == {900}
    assert {one.timeout for one in changes if one.address == int(B)} == {660}, "a TTL counts as 60 s at least"
    assert table.names(A, ME) == ("near.example",)


def test_conflict_comes_and_goes() -> None:
    table, kernel = Learned(compiled()), Kernel()
    kernel.apply(table.learn("near.example", ME, [(A, 60)], 0.0))
    changes = table.learn("far.example", YOU, [(A, 3600)], 1.0)
    kernel.apply(changes)
    assert kernel.at(A) == {"SNIFF"}
    assert len(kernel.maps) < len(changes), "no element where SNIFF is what the address is without a name"
    assert table.names(A, ME) == ("near.example", "far.example")
    assert table.names(A, YOU) == ("far.example", "near.example")
    kernel.apply(table.expire(500.0))
    assert kernel.at(A) == {"SNIFF"}
    kernel.apply(table.expire(700.0))
    assert kernel.at(A) == {"USER"}
    kernel.apply(table.expire(5000.0))
    assert not kernel.maps
    assert len(table) == 0
    assert table.next_expiry() is None


def test_conflict_over_a_direct_address_is_an_element_that_outlives_its_owners() -> None:
    rules = [{"ip_cidr": "203.0.113.0/24", "domain": "near.example", "outbound": "direct"}, *RULES[1:]]
    table, kernel = Learned(compiled(rules)), Kernel()
    kernel.apply(table.learn("near.example", ME, [(B, 60)], 0.0))
    assert not kernel.at(B), "direct with and without the name"
    changes = table.learn("bad.example", ME, [(B, 60)], 0.0)
    kernel.apply(changes)
    assert kernel.at(B) == {"SNIFF"}
    assert {one.timeout for one in changes} == {660 + elements.SHIELD}


def test_owners_that_agree_are_no_conflict() -> None:
    table, kernel = Learned(compiled()), Kernel()
    for name in ("a.far.example", "b.far.example", "far.example"):
        kernel.apply(table.learn(name, ME, [(A, 60)], 0.0))
    assert kernel.at(A) == {"USER"}


def test_a_refresh_is_told_only_where_it_matters() -> None:
    table = Learned(compiled())
    table.learn("near.example", ME, [(A, 300)], 0.0)
    assert not table.learn("near.example", ME, [(A, 300)], 10.0)
    again = table.learn("near.example", ME, [(A, 300)], 100.0)
    assert again
    assert all(one.old is one.new is Verdict.DIRECT and one.timeout == 900 for one in again)
    assert not table.learn("near.example", ME, [(A, 1)], 101.0), "an expiry never shrinks"


def test_cap_of_a_day() -> None:
    table = Learned(compiled())
    assert {one.timeout for one in table.learn("near.example", ME, [(A, 10**9)], 0.0)} == {86400}


def test_rebuild() -> None:
    table, kernel = Learned(compiled()), Kernel()
    kernel.apply(table.learn("near.example", ME, [(A, 60)], 0.0))
    kernel.apply(table.learn("far.example", ME, [(B, 60)], 0.0))
    turned = compiled([{"action": "sniff"}, {"domain": "near.example", "outbound": "vps"}])
    same, changes = table.rebuilt(compiled(), 5.0)
    assert not changes, "equal rules change nothing"
    table, changes = same.rebuilt(turned, 10.0)
    kernel.keep({n for n, profile in enumerate(turned.steering.profiles) if profile.learned})
    kernel.apply(changes)
    assert kernel.at(A) == {"USER"}
    assert kernel.at(B) == {"DIRECT"}
    kernel.apply(table.expire(10_000.0))
    assert not kernel.maps


def test_rules_that_learn_no_names_keep_none() -> None:
    silent = compiled(learn=False)
    assert not any(profile.learned for profile in silent.steering.profiles)
    table, kernel = Learned(compiled()), Kernel()
    kernel.apply(table.learn("near.example", ME, [(A, 60)], 0.0))
    table.sniffed("www.far.example", B, 0.0)
    after, changes = table.rebuilt(silent, 1.0)
    assert (len(after), changes, after.names(A, ME), after.all_names(B, 1.0)) == (0, [], (), ())
    kernel.keep(set())
    again, changes = after.rebuilt(compiled(), 3.0)
    kernel.apply(changes)
    kernel.apply(again.learn("far.example", ME, [(A, 60)], 4.0))
    assert kernel.at(A) == {"USER"}


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(module, "MOST_OWNERS", 2)
    monkeypatch.setattr(module, "MOST_ORDERS", 2)
    table, kernel = Learned(compiled()), Kernel()
    for n in range(6):
        kernel.apply(table.learn("near.example", ME, [(ip_address(f"203.0.113.{n}"), 60)], float(n)))
    assert len(table) == 3
    assert kernel.at(ip_address("203.0.113.5")) == {"DIRECT"}
    assert not kernel.at(ip_address("203.0.113.0")), "forgotten: sniffed again"
    kernel.apply(table.learn("x.far.example", ME, [(A, 60)], 10.0))
    for name in ("a.example", "b.example", "c.example"):
        kernel.apply(table.learn(name, ME, [(A, 60)], 11.0))
    assert kernel.at(A) == {"SNIFF"}, "the owner that was dropped at the bound still makes a conflict"


def test_who_asks_for_most_loses_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ADDRESSES", 100)
    table = Learned(compiled())
    one = next(ip for n in range(99) if share_of((4, int(ip := ME + n))) != share_of((4, int(YOU))))
    table.learn("near.example", one, [(ip_address("198.51.100.1") + n, 60) for n in range(10)], 0.0)
    for number in range(1000):
        table.learn(f"n{number}.example", YOU, [(A + number, 60)], 1.0)
    assert len(table) == 100
    assert all(table.names(ip_address("198.51.100.1") + n, one) for n in range(10))
    assert [bool(table.names(A + number, YOU)) for number in (909, 910, 999)] == [False, True, True]
    while table.next_expiry() is not None:
        table.expire(10_000.0)
    assert len(table) == 0
    with pytest.raises(StopIteration):
        table._shares.first()


@pytest.mark.parametrize(("bound", "most"), [("MOST_OWNED", 40), ("MOST_ELEMENTS", 30), ("MOST_ADDRESSES", 10)])
def test_what_the_tables_hold_together_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, most: int) -> None:
    monkeypatch.setattr(module, bound, most)
    rules = [RULES[0], {"source_ip_cidr": "192.168.8.0/25", "domain": "y.far.example", "outbound": "vps"}, *RULES[1:]]
    table, kernel = Learned(compiled(rules)), Kernel()
    for number in range(200):
        name = f"{'xyz'[number % 3]}.{'near' if number % 5 else 'far'}.example"
        kernel.apply(table.learn(name, ME + number % 4, [(A + number % 17, 60 + number)], float(number)))
        kernel.apply(table.expire(float(number)))
        owners = sum(len(entry.owners) for entry in table._addresses.values())
        assert (table._shares.owners, len(table._elements)) == (owners, len(kernel.maps))
        held = {"MOST_OWNED": owners, "MOST_ELEMENTS": len(kernel.maps), "MOST_ADDRESSES": len(table)}
        assert held[bound] <= most
    assert table.tables(200.0)["addresses"][2] > 0
    monkeypatch.setattr(module, bound, 6)
    before = table
    table, changes = table.rebuilt(compiled(rules), 200.0)
    assert before._shares.owners == sum(len(entry.owners) for entry in before._addresses.values()), "also if refused"
    kernel.apply(changes)
    assert len(table._elements) == len(kernel.maps)
    assert {"MOST_OWNED": table._shares.owners, "MOST_ELEMENTS": len(kernel.maps), "MOST_ADDRESSES": len(table)}[
        bound
    ] <= 6
    kernel.apply(table.expire(10_000.0))
    assert (len(table), table._shares.owners, len(table._elements), table._held, kernel.maps) == (0, 0, 0, {}, {})


def test_many_answers_leave_the_queue_bounded() -> None:
    table = Learned(compiled())
    for n in range(6000):
        table.learn("near.example", ME, [(A, 60 + n)], float(n))
    assert len(table._due) < 2000
    table.expire(10**6)
    assert len(table) == 0
