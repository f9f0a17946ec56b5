"""Addresses that several names share: names that lead to others, names that connections showed, prefixes, hints."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import PeerError
from gateway.kernel.plan import MOST_LEARNED
from gateway.route import aliases, hints, learned, prefixes, shown
from gateway.route.aliases import Aliases
from gateway.route.forgotten import Forgotten
from gateway.route.hints import Hints, Way
from gateway.route.learned import Learned
from gateway.route.prefixes import DAY, Prefixes, prefix_of
from gateway.route.shares import share_of
from gateway.route.shown import Shown

from .test_learned import ME, YOU, A, B, Kernel, compiled

X, Y = ip_address("198.51.100.1"), ip_address("198.51.100.2")
BY_ADDRESS = [{"ip_cidr": "198.51.100.0/24", "outbound": "direct"}, {"action": "sniff"},
              {"domain_suffix": "far.example", "outbound": "vps"}]  # fmt: skip


def made() -> tuple[Learned, Kernel]:
    return Learned(compiled(), sharing=True), Kernel()


def judged(table: Learned, kernel: Kernel, address: Any, port: int = 443) -> str:
    """What the kernel makes of a connection from a client."""
    family = address.version
    profile, nameless = table._compiled.lookup("tcp", port, family, int(address), source=int(ME))
    return kernel.maps.get((profile, family, int(address)), nameless).name


# -- names that lead to others


def test_the_alias_that_nobody_asked_for_is_no_owner() -> None:
    """near.example is an alias of cdn.far.example: what was asked for is what a connection will be called."""
    table, kernel = made()
    kernel.apply(table.learn("near.example", ME, [(A, 60)], 0.0))
    assert judged(table, kernel, A) == "DIRECT"
    kernel.apply(table.learn("cdn.far.example", YOU, [(A, 60)], 1.0))
    assert judged(table, kernel, A) == "SNIFF", "now somebody has"
    assert table.names(A, ME) == ("near.example", "cdn.far.example")


@pytest.mark.parametrize("first", ["alias", "address"])
def test_what_a_target_resolves_to_belongs_to_the_name_that_leads_there(first: str) -> None:
    """A browser that was sent from www.far.example to svc.near.example says www.far.example when it connects."""
    table, kernel = made()
    steps = [lambda: table.learn("www.far.example", ME, [], 0.0, [("svc.near.example", 60)]),
             lambda: table.learn("svc.near.example", ME, [(A, 60)], 0.0)]  # fmt: skip
    for step in steps if first == "alias" else reversed(steps):
        kernel.apply(step())
    assert judged(table, kernel, A) == "SNIFF"
    assert set(table.names(A, ME)) == {"www.far.example", "svc.near.example"}
    kernel.apply(table.expire(661.0))
    assert not kernel.maps
    kernel.apply(table.learn("svc.near.example", ME, [(A, 60)], 700.0))
    assert judged(table, kernel, A) == "DIRECT", "nobody can come from there any more"


def test_targets_of_targets_and_in_a_circle() -> None:
    table, kernel = made()
    for name, target in (("a.example", "b.example"), ("b.example", "c.example"), ("c.example", "a.example")):
        kernel.apply(table.learn(name, ME, [], 0.0, [(target, 60)]))
    kernel.apply(table.learn("c.example", ME, [(A, 60)], 0.0))
    assert set(table.names(A, ME)) == {"a.example", "b.example", "c.example"}
    kernel.apply(table.learn("x.far.example", ME, [], 1.0, [("a.example", 60)]))
    assert judged(table, kernel, A) == "SNIFF", "the address was there before"


def test_targets_beyond_the_bound_are_conflicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "MOST_TARGETS", 2)
    monkeypatch.setattr(aliases, "MOST_NAMES", 2)
    table, kernel = made()
    for number in range(3):
        kernel.apply(table.learn("www.far.example", ME, [], 0.0, [(f"t{number}.example", 60)]))
    kernel.apply(table.learn("t0.example", ME, [(A, 60)], 0.0))
    assert judged(table, kernel, A) == "SNIFF"
    assert table.names(A, ME) == ("t0.example",)
    assert table.tables(0.0)["targets"] == (2, 2, 1)
    kernel.apply(table.expire(700.0))
    kernel.apply(table.learn("t0.example", ME, [(A, 60)], 700.0))
    assert judged(table, kernel, A) == "DIRECT"
    many = Aliases()
    for number in range(3):
        many.add("t", f"n{number}", 100.0)
    assert (many.names("t", 0.0), many.doubt({"t"})) == ({"n1", "n2"}, 100.0)
    many.expire(200.0)
    assert len(many) == 0


def test_addresses_beyond_what_one_name_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not noted of it could not be told of a name that leads there."""
    monkeypatch.setattr(learned, "MOST_HELD", 2)
    table, kernel = made()
    for number in range(3):
        kernel.apply(table.learn("t.example", ME, [(X + number, 60)], 0.0))
    assert [judged(table, kernel, X + number) for number in range(3)] == ["DIRECT", "DIRECT", "SNIFF"]
    kernel.apply(table.learn("www.far.example", ME, [], 0.0, [("t.example", 60)]))
    assert {judged(table, kernel, X + number) for number in range(3)} == {"SNIFF"}
    kernel.apply(table.expire(700.0))
    assert len(table) == 0
    assert not table._held


def test_a_client_that_asks_for_aliases_without_end_takes_no_belief_from_others() -> None:
    table, kernel = made()
    other = next(ip for n in range(99) if share_of((4, int(ip := ME + n))) != share_of((4, int(YOU))))
    refused = 0
    for number in range(600):
        targets = [(f"t{number}-{n}.example", DAY) for n in range(64)]
        try:
            kernel.apply(table.learn(f"n{number}.far.example", YOU, [], 0.0, targets))
        except PeerError:
            refused += 1
    assert (refused, len(table._aliases)) == (596, aliases.MOST_TOLD)
    assert table.tables(0.0)["targets"] == (256, aliases.MOST_TARGETS, 596)
    for number in range(200):
        kernel.apply(table.learn(f"near{number}.example", other, [(X + number, 60)], 0.0))
    assert {judged(table, kernel, X + number) for number in range(200)} == {"DIRECT"}
    kernel.apply(table.learn("www.far.example", other, [], 0.0, [("near0.example", 60)]))
    assert judged(table, kernel, X) == "SNIFF", "others go on to be told"
    assert not table.learn("n.far.example", YOU, [], DAY + 1000.0, [("near.example", 60)]), "when they are over"


def test_what_is_forgotten_takes_belief_from_few_others() -> None:
    table = Forgotten()
    assert table.until("any") == 0.0
    for number in range(20_000):
        table.add(number, 100.0)
    assert all(table.until(number) == 100.0 for number in range(20_000))
    assert sum(table.until(f"other{number}") > 0.0 for number in range(1000)) < 200, "one in thirteen"


def test_one_answer_that_would_change_too_many_addresses_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MOST_TOUCHED", 4)
    table, kernel = made()
    for number in range(3):
        kernel.apply(table.learn("t.example", ME, [(X + number, 60)], 0.0))
        kernel.apply(table.learn("u.example", ME, [(X + number + 8, 60)], 0.0))
    for addresses, targets in ((range(5), ()), (range(2), ("t.example",)), ((), ("t.example", "u.example"))):
        with pytest.raises(PeerError, match="says something of"):
            table.learn("www.far.example", ME, [(A + n, 60) for n in addresses], 0.0, [(one, 60) for one in targets])
    assert (len(table), len(table._aliases), table.names(X, ME)) == (6, 0, ("t.example",))
    kernel.apply(table.learn("www.far.example", ME, [(A, 60)], 0.0, [("t.example", 60)]))
    assert judged(table, kernel, X) == "SNIFF"


def test_what_ends_at_once_goes_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MOST_TOUCHED", 4)
    table, kernel = made()
    for number in range(10):
        kernel.apply(table.learn("near.example", ME, [(X + number, 60)], 0.0))
    left = []
    while (due := table.next_expiry()) is not None and due <= 700.0:
        kernel.apply(table.expire(700.0))
        left.append(len(table))
    assert left == [6, 2, 0]
    assert not kernel.maps


# -- names that connections showed


def test_a_shown_name_makes_a_conflict_and_goes() -> None:
    table, kernel = made()
    kernel.apply(table.learn("near.example", ME, [(A, 3600)], 0.0))
    assert not table.sniffed("near.example", A, 1.0), "an owner"
    kernel.apply(table.sniffed("other.example", A, 1.0))
    assert judged(table, kernel, A) == "DIRECT", "judged alike"
    changes = table.sniffed("www.far.example", A, 1.0)
    kernel.apply(changes)
    assert judged(table, kernel, A) == "SNIFF"
    assert table.names(A, ME) == ("near.example",), "a flow without a name is not called by what others showed"
    assert not table.sniffed("www.far.example", A, 2.0), "known"
    kernel.apply(table.sniffed("www.far.example", A, 500.0))
    kernel.apply(table.expire(700.0))
    assert judged(table, kernel, A) == "SNIFF"
    kernel.apply(table.expire(500.0 + shown.LASTS))
    assert judged(table, kernel, A) == "DIRECT"
    kernel.apply(table.expire(10_000.0))
    assert not kernel.maps


def test_a_shown_name_is_remembered_until_dns_speaks() -> None:
    table, kernel = made()
    kernel.apply(table.sniffed("www.far.example", A, 0.0))
    assert not kernel.maps, "sniffed anyway"
    kernel.apply(table.learn("near.example", ME, [(A, 60)], 1.0))
    assert judged(table, kernel, A) == "SNIFF"


def test_a_shown_name_against_an_address_that_is_direct_by_itself() -> None:
    """``fast``: the address rule decides without a name, until one is seen there that is judged otherwise."""
    rules = [{"action": "sniff"}, {"domain_suffix": "far.example", "outbound": "vps"}, *BY_ADDRESS[:1]]
    for mode in ("fast", "balanced"):
        table, kernel = Learned(compiled(rules, mode=mode)), Kernel()
        kernel.apply(table.sniffed("near.example", X, 0.0))
        assert not kernel.maps
        kernel.apply(table.sniffed("www.far.example", X, 0.0))
        assert judged(table, kernel, X) == "SNIFF"
        kernel.apply(table.expire(shown.LASTS + 1.0))
        assert not kernel.maps


def test_a_conflict_that_a_forgotten_name_keeps_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The element stays as long as somebody else's doubt falls on its address, and is forgotten then."""
    monkeypatch.setattr("gateway.route.forgotten.BUCKETS", 1)
    monkeypatch.setattr(shown, "MOST_ADDRESSES", 1)
    rules = [{"action": "sniff"}, {"domain_suffix": "far.example", "outbound": "vps"}, *BY_ADDRESS[:1]]
    table, kernel = Learned(compiled(rules, mode="balanced")), Kernel()
    kernel.apply(table.sniffed("www.far.example", X, 0.0))
    assert judged(table, kernel, X) == "SNIFF"
    for address in (A, A + 1):
        kernel.apply(table.sniffed("www.far.example", address, 300.0))
    kernel.apply(table.expire(shown.LASTS + 1.0))
    assert judged(table, kernel, X) == "SNIFF"
    table._due += [(800.0, (4, 1))] * 2000
    table._compact()
    assert len(table._due) < 10
    kernel.apply(table.expire(1000.0))
    assert not kernel.maps
    assert table.next_expiry() is None


NAMES = st.sampled_from(["near.example", "a.far.example", "b.far.example", "x.bad.example", "c.example"])
EVENTS = st.lists(st.tuples(st.sampled_from(["learn", "sniff", "lead", "expire"]), NAMES, NAMES,
                            st.sampled_from([A, B, X]), st.integers(0, 400)), max_size=40)  # fmt: skip


@given(EVENTS)
def test_what_clients_show_can_only_make_doubt(events: Any) -> None:
    """Against a table that hears the same answers and of no connection: nothing differs but to SNIFF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown, "MOST_ADDRESSES", 2)
        patch.setattr(shown, "MOST_NAMES", 2)
        (table, kernel), (plain, without) = made(), made()
        now = 0.0
        for kind, name, other, address, later in events:
            now += later
            if kind == "sniff":
                kernel.apply(table.sniffed(name, address, now))
                continue
            for one, maps in ((table, kernel), (plain, without)):
                if kind == "learn":
                    maps.apply(one.learn(name, ME, [(address, 60)], now))
                elif kind == "lead":
                    maps.apply(one.learn(name, ME, [], now, [(other, 60)]))
                else:
                    maps.apply(one.expire(now))
            for one in (A, B, X):
                for port in (25, 443):
                    assert judged(table, kernel, one, port) in (judged(plain, without, one, port), "SNIFF")
                assert judged(table, kernel, one, 25) == judged(plain, without, one, 25), "nothing is shown there"


def test_what_is_forgotten_of_connections_stays_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown, "MOST_ADDRESSES", 2)
    monkeypatch.setattr(shown, "MOST_NAMES", 2)
    table, kernel = made()
    kernel.apply(table.sniffed("www.far.example", A, 0.0))
    for address in (X, Y):
        kernel.apply(table.sniffed("near.example", address, 0.0))
    kernel.apply(table.learn("near.example", ME, [(A, 3600)], 1.0))
    assert judged(table, kernel, A) == "SNIFF"
    assert table.tables(1.0)["shown"][::2] == (2, 1)
    kernel.apply(table.expire(shown.LASTS + 1.0))
    assert judged(table, kernel, A) == "DIRECT"
    names = Shown()
    for number in range(3):
        names.add((4, 1), f"n{number}", 0.0)
    assert (sorted(names.names((4, 1), 0.0)), names.doubt((4, 1))) == (["n1", "n2"], shown.LASTS)


def test_many_names_shown_leave_the_queue_bounded() -> None:
    table, _ = made()
    for number in range(3000):
        table.sniffed(f"n{number}.example", A, 0.0)
    assert len(table._due) < 1100
    table.expire(shown.LASTS + 1.0)
    assert table.next_expiry() is None


# -- prefixes


def test_prefixes() -> None:
    for text, prefix in (("198.51.100.77", "198.51.100.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48")):
        ip = ip_address(text)
        assert prefix_of(ip.version, int(ip)) == (ip.version, int(ip_network(prefix).network_address))


def test_two_meetings_in_a_day_and_a_prefix_is_shared_for_a_day() -> None:
    table = Prefixes()
    here = prefix_of(4, int(X))
    assert not table.note(here, "direct", 0.0)
    assert not table.note(here, "direct", 1.0)
    assert not table.note(here, "proxy", 2.0), "once"
    assert not table.holds(4, int(Y), 2.0)
    assert not table.note(here, "proxy", DAY + 3.0), "the others are a day old"
    assert not table.note(here, "direct", DAY + 4.0), "once in this day"
    assert table.note(here, "proxy", DAY + 5.0)
    assert table.holds(4, int(Y), DAY + 6.0)
    assert not table.holds(4, int(A), DAY + 6.0)
    table.forget_verdicts()
    assert table.holds(4, int(Y), DAY + 6.0)
    table.expire(2 * DAY + 6.0)
    assert not table.holds(4, int(Y), 2 * DAY + 6.0)
    assert table.shared[0] == 0


def test_prefix_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "MOST_PREFIXES", 2)
    monkeypatch.setattr(prefixes, "MOST_VERDICTS", 2)
    table = Prefixes()
    for number in range(4):
        for verdict in "abc":
            table.note((4, number << 8), verdict, float(number))
    assert (len(table), table.bound, table.shared) == (2, (2, 2), (2, 2, 2))


def test_learning_meets_in_prefixes() -> None:
    table, kernel = made()
    for number, name in enumerate(("near.example", "a.far.example", "other.example")):
        addresses = [(IPv4Address("198.51.100.10") + number + extra, 60) for extra in (0, 50)]
        for client in (ME, YOU):  # who asks is all one, and so are several addresses of one answer
            kernel.apply(table.learn(name, client, addresses, float(number)))
        assert table.fresh()[1] == ([prefix_of(4, int(X))] if number == 2 else [])
    assert table.shared(X, 3.0)
    assert not table.shared(A, 3.0)
    after, _ = table.rebuilt(compiled(), 4.0, sharing=True)
    assert after.shared(X, 5.0)


# -- hints


WAY, OTHER = Way((4, 1), (4, 2), 443), Way((4, 1), (4, 3), 443)


def test_hints() -> None:
    table = Hints()
    assert table.direct(WAY, 0.0)
    assert not table.direct(WAY, 1.0), "the kernel has it"
    assert table.at((4, 2)) == (WAY,)
    assert table.elsewhere(WAY, 2.0), "and must not have it any more"
    assert not table.direct(WAY, 3.0)
    assert not table.elsewhere(OTHER, 3.0)
    assert table.direct(WAY, 2.0 + hints.OTHER)
    assert table.left(WAY, 2.0 + hints.OTHER) == hints.LASTS
    table.expire(2.0 + hints.OTHER + hints.LASTS)
    assert table.at((4, 2)) == (WAY,), "the kernel may have it a little longer"
    table.expire(2.0 + hints.OTHER + hints.KEPT)
    assert len(table) == 0
    assert table.at((4, 2)) == ()
    assert table.direct(WAY, 2000.0)
    assert table.drop(WAY)
    assert not table.drop(WAY)
    assert table.direct(WAY, 2000.0)
    assert table.clear() == (WAY,)
    assert table.direct(WAY, 2000.0)


def test_hint_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "MOST_HINTS", 1)
    monkeypatch.setattr(hints, "MOST_OTHERS", 1)
    table = Hints()
    assert table.direct(WAY, 0.0)
    assert not table.direct(OTHER, 0.0)
    table.expire(hints.KEPT)
    assert table.direct(OTHER, hints.KEPT)
    for port in (1, 2):
        table.elsewhere(WAY._replace(port=port), 100.0)
    table.clear()
    assert not table.direct(WAY._replace(port=1), 101.0), "forgotten is not allowed"
    assert table.tables() == {"hints": (0, 1, 1), "hints forbidden": (1, 1, 1)}


# -- what is shown of the tables


def test_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(learned, "MOST_OWNERS", 2)
    monkeypatch.setattr(learned, "MOST_ORDERS", 2)
    table, kernel = made()
    for number in range(4):
        kernel.apply(table.learn("near.example", ME, [(IPv4Address("192.0.2.1") + number, 60)], 0.0))
    for name in ("a.example", "b.example"):
        kernel.apply(table.learn(name, ME, [(ip_address("192.0.2.4"), 60)], 0.0))
    found = table.tables(1.0)
    assert found["addresses"] == (3, 3, 1)
    assert found["crowded addresses"] == (1, 3, 1)
    assert found["orders"] == (2, 2, 2)
    assert found["fullest learned set"] == (2, MOST_LEARNED, 0), (
        "the crowded one is a conflict, which is what it is without a name"
    )
    kernel.apply(table.expire(10_000.0))
    assert [found[0] for found in table.tables(10_000.0).values()] == [0, 0, 2, 0, 0, 1, 0, 0]
