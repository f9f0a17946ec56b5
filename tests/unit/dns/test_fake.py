"""Fake addresses: in the order of sing-box 1.12.12, as many as there are, and what a store brings back."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

import pytest

from gateway.dns import fake
from gateway.dns.fake import FakeAddresses

FOUR, SIX = ip_network("198.18.0.0/29"), ip_network("fc00::/125")


class Shelf:
    """A store without a file."""

    problem = ""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], bytes] = {}

    def get(self, kind: str, key: str) -> bytes | None:
        return self.kept.get((kind, key))

    def items(self, kind: str) -> list[tuple[str, bytes]]:
        return [(key, value) for (one, key), value in sorted(self.kept.items()) if one == kind]

    def put(self, kind: str, key: str, value: bytes) -> None:
        self.kept[kind, key] = value

    def delete(self, kind: str, key: str) -> None:
        self.kept.pop((kind, key), None)

    def change(self, entries: Iterable[tuple[str, str, bytes | None]]) -> None:
        for kind, key, value in entries:
            if value is None:
                self.delete(kind, key)
            else:
                self.put(kind, key, value)


def give(fakes: FakeAddresses, name: str, version: int = 4) -> str:
    ip, entries = fakes.give(name, version)
    if fakes.store is not None:
        fakes.store.change(entries)
    return str(ip)


def test_the_order_is_that_of_sing_box() -> None:
    fakes = FakeAddresses((FOUR, SIX))
    assert [give(fakes, name)[-1] for name in "abcadefghia"] == list("34536723456")
    assert fakes.name(ip_address("198.18.0.3")) == "g"
    assert fakes.name(ip_address("198.18.0.6")) == "a"
    assert fakes.name(ip_address("198.18.0.9")) == ""
    assert give(fakes, "a", 6) == "fc00::3"
    assert fakes.name(ip_address("fc00::3")) == "a"


def test_what_is_in_the_range_is_fake_whoever_was_told_of_it() -> None:
    fakes = FakeAddresses((FOUR,))
    for text, inside in (("198.18.0.0", True), ("198.18.0.7", True), ("198.18.0.8", False), ("fc00::1", False)):
        assert (ip_address(text) in fakes) is inside
    assert fakes.give("a", 6) == (None, [])


def test_at_the_bound_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "MOST", 3)
    shelf = Shelf()
    fakes = FakeAddresses((ip_network("fc00::/64"),), shelf)
    for name in "abcd":
        give(fakes, name, 6)
    assert [fakes.name(ip_address(f"fc00::{number}")) for number in (3, 4, 5, 6)] == ["", "b", "c", "d"]
    assert [key for kind, key in shelf.kept if kind == "fakeip6"] == ["fc00::4", "fc00::5", "fc00::6"]


def test_a_store_brings_it_back_in_order() -> None:
    shelf = Shelf()
    fakes = FakeAddresses((FOUR, SIX), shelf)
    for name in "abcdefg":  # the range has come round: g has the place of a
        give(fakes, name)
    again = FakeAddresses((FOUR, SIX), shelf)
    assert {str(number): again.name(ip_address(f"198.18.0.{number}")) for number in range(8)} == {
        str(number): fakes.name(ip_address(f"198.18.0.{number}")) for number in range(8)
    }
    assert [give(again, name) for name in "hij"] == [give(fakes, name) for name in "hij"]
    other = FakeAddresses((ip_network("198.18.0.0/28"),), shelf)
    assert other.name(ip_address("198.18.0.3")) == ""
    assert give(other, "x") == "198.18.0.3"


def test_a_store_with_nonsense_in_it_is_an_empty_one() -> None:
    shelf = Shelf()
    shelf.put("fakeip", "walk4", b"{")
    shelf.put("fakeip4", "nothing", b"x")
    fakes = FakeAddresses((FOUR,), shelf)
    assert give(fakes, "a") == "198.18.0.3"
