"""What flows of the kernel have carried, from looks and ends in any order; what one tally holds."""

from __future__ import annotations

import pytest

from gateway import ledger as ledger_module
from gateway.core.account import REST, Key, Tally
from gateway.core.address import Address
from gateway.kernel.conntrack import Count, Counted, Entry
from gateway.ledger import Ledger

SITE = Address.of("203.0.113.2", 443)


def flow(number: int, up: tuple[int, int], down: tuple[int, int], short: int = 0, port: int = 40000) -> Counted:
    client = Address.of("192.168.7.10", port)
    entry = Entry(6, client, SITE, SITE, client, 0x02000000, 0)
    return Counted(entry, 120, Count(*up), Count(*down), number, Count(short, short * 1000))


def key_of(found: Counted) -> Key:
    return Key("direct", found.entry.source.host)


def sums(ledger: Ledger) -> tuple[int, int, int, int]:
    ((_, one),) = ledger.tally
    return one.flows, one.up, one.down, one.packets


def look(ledger: Ledger, *found: Counted, whole: bool = True) -> None:
    ledger.begin()
    for one in found:
        ledger.note(one, key_of)
    ledger.finish(whole)


def test_a_flow_counts_once_and_then_what_it_grew() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (2, 200), (3, 300)))
    assert sums(ledger) == (1, 200, 300, 5)
    look(ledger, flow(1, (2, 200), (3, 300)))
    assert sums(ledger) == (1, 200, 300, 5)
    look(ledger, flow(1, (4, 400), (3, 300), short=7))
    assert sums(ledger) == (1, 7400, 300, 14)


def test_a_count_that_fell_began_anew() -> None:
    """The short way has forgotten the flow, and learned it again; the long way goes on."""
    ledger = Ledger()
    look(ledger, flow(1, (2, 200), (0, 0), short=7))
    look(ledger, flow(1, (3, 300), (0, 0), short=2))
    assert sums(ledger) == (1, 9300, 0, 12)


def test_an_end_that_is_heard_after_the_look_counts_once() -> None:
    """The look itself makes conntrack drop what has expired."""
    ledger = Ledger()
    look(ledger, flow(1, (1, 100), (0, 0)))
    look(ledger)
    ledger.end(flow(1, (3, 300), (0, 0)), key_of)
    assert sums(ledger) == (1, 300, 0, 3)


def test_no_more_flows_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "KNOWN", 2)
    ledger = Ledger()
    look(ledger, *(flow(number, (1, 100), (0, 0)) for number in range(1, 4)))
    assert sums(ledger) == (2, 200, 0, 2), "the third is not counted, lest it be counted at each look"


def test_who_is_gone_and_comes_again_is_another() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (1, 100), (0, 0)))
    look(ledger)
    look(ledger, flow(1, (1, 100), (0, 0)))
    assert sums(ledger) == (2, 200, 0, 2)


def test_a_look_that_broke_off_forgets_nobody() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (1, 100), (0, 0)), flow(2, (1, 100), (0, 0)))
    look(ledger, flow(1, (2, 200), (0, 0)), whole=False)
    look(ledger, flow(1, (2, 200), (0, 0)), flow(2, (1, 100), (0, 0)))
    assert sums(ledger) == (2, 300, 0, 3)


def test_ends() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (1, 100), (0, 0)))
    ledger.end(flow(1, (3, 300), (0, 0)), key_of)
    assert sums(ledger) == (1, 300, 0, 3)
    ledger.end(flow(2, (1, 50), (0, 0)), key_of)
    assert sums(ledger) == (2, 350, 0, 4)


def test_an_end_during_a_look_counts_once_on_either_side_of_the_dump() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (1, 100), (0, 0)), flow(2, (1, 100), (0, 0)))
    ledger.begin()
    ledger.note(flow(1, (2, 200), (0, 0)), key_of)
    ledger.end(flow(1, (3, 300), (0, 0)), key_of)
    ledger.end(flow(2, (3, 300), (0, 0)), key_of)
    ledger.note(flow(2, (2, 200), (0, 0)), key_of)  # it was in the kernel's answer already
    ledger.finish(True)
    assert sums(ledger) == (2, 600, 0, 6)
    look(ledger, flow(2, (1, 10), (0, 0)))
    assert sums(ledger) == (3, 610, 0, 7)


def test_without_accounting_flows_are_counted_alone() -> None:
    ledger = Ledger()
    look(ledger, flow(1, (0, 0), (0, 0))._replace(up=None, down=None))
    assert sums(ledger) == (1, 0, 0, 0)


def test_a_tally_keeps_the_sum_at_its_bound() -> None:
    tally = Tally(most=10)
    for number in range(35):
        tally.add(Key("direct", f"192.0.2.{number}"), 1, number, 2 * number, 3)
    tally.add(Key("direct", "192.0.2.34"), 1, 1, 0)
    found = dict(tally)
    assert len(found) == 11
    assert found[Key(REST, REST, REST)].flows == 25
    for name, wanted in (("flows", 36), ("up", 35 * 17 + 1), ("down", 35 * 34), ("packets", 105)):
        assert sum(getattr(sums, name) for sums in found.values()) == wanted
    copy = tally.copy()
    copy.add(Key("proxy", "192.0.2.34"), 1, 1, 1)
    assert dict(tally).keys() == found.keys()
