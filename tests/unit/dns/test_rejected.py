"""Answers that address rules did not take."""

from __future__ import annotations

import pytest

from gateway.dns import rejected
from gateway.dns.rejected import Rejections
from tests.unit.dns.test_fake import Shelf


def test_lasts_so_long() -> None:
    now, shelf = 1000.0, Shelf()
    known = Rejections(shelf, 60, lambda: now)
    known.add("near", "a.example", 1)
    assert known.holds("near", "a.example", 1)
    for other in (("far", "a.example", 1), ("near", "b.example", 1), ("near", "a.example", 28)):
        assert not known.holds(*other)
    now += 59
    again = Rejections(shelf, 60, lambda: now)
    assert again.holds("near", "a.example", 1)
    now += 2
    assert not again.holds("near", "a.example", 1)
    Rejections(shelf, 60, lambda: now)
    assert shelf.kept == {}, "what is over is gone from the store"


def test_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejected, "MOST", 2)
    shelf = Shelf()
    known = Rejections(shelf, 60, lambda: 1000.0)
    for name in "abac":
        known.add("near", name, 1)
    assert [known.holds("near", name, 1) for name in "abc"] == [True, False, True]
    assert sorted(key for _, key in shelf.kept) == ["1 a near", "1 c near"]


def test_a_store_with_nonsense_in_it() -> None:
    shelf = Shelf()
    shelf.put("rdrc", "1 a near", b"soon")
    shelf.put("rdrc", "1 b near", b"9e99")
    known = Rejections(shelf, 60, lambda: 1000.0)
    assert not known.holds("near", "a", 1)
    assert not known.holds("near", "b", 1), "nobody has kept anything for so long"
