"""T7: others flush, delete and reload rules while the gateway runs. What steers does not notice; what everybody may
take away, the base table and the ip rule, comes back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from gateway.kernel import mark
from gateway.kernel.nft.library import Library
from gateway.lab.stage import poll

from .house import CLIENT, DIRECT, FAMILIES, FORWARD, KINDS, PROXIED, SERVER, SITE, WAN, House
from .neighbour import EVERY

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t7_flush")]
BASE = ("list", "table", "inet", "gateway_base")
AWAY = (
    "nft flush ruleset",
    "nft delete table inet gateway_base",
    "nft flush table inet gateway_base",
    "nft flush chain inet gateway_base postrouting",
    "nft flush set inet gateway_base lans",
    "nft delete element inet gateway_base open_tcp '{ 22 }'",
)


def listed(house: House) -> str:
    """The base table; "" where there is none."""
    return str(house.gateway.run(["nft", *BASE]).out)


def restored(house: House) -> int:
    return int(house.status()["restored"])


@pytest.fixture
def flows(alone: House) -> Iterator[dict[str, socket.socket]]:
    """A direct and a proxied connection that run."""
    with (
        closing(alone.open("tcp", alone.client, DIRECT[4])) as direct,
        closing(alone.open("tcp", alone.client, PROXIED[4])) as proxied,
    ):
        found = {"direct": direct, "proxied": proxied}
        answers(found)
        yield found


def answers(flows: dict[str, socket.socket]) -> None:
    for name, sock in flows.items():
        sock.send(b"?")
        assert sock.recv(100).decode().startswith("server "), name


@pytest.mark.parametrize("line", AWAY)
def test_t7_what_others_take_away_comes_back(alone: House, flows: dict[str, socket.socket], line: str) -> None:
    house = alone
    before, times = listed(house), restored(house)
    assert before
    house.lines(line)
    # At once, with nothing restored yet.
    for kind in KINDS:
        assert house.ask(kind, house.client, PROXIED[6]) == f"server {PROXIED[6]}"
    answers(flows)
    poll(lambda: listed(house) == before, f"the base table does not come back after {line}")
    poll(lambda: restored(house) == times + 1, "status does not count it")
    answers(flows)
    for kind in KINDS:
        assert house.ask(kind, house.client, DIRECT[4]) == f"server {WAN[4]}"
        assert house.far(kind, WAN[4], FORWARD) == f"desk {SERVER[4]}"
    assert "other programs took away" in house.command("status").out


def test_t7_the_owned_table_refuses_others(alone: House, flows: dict[str, socket.socket]) -> None:
    house = alone
    before = house.gateway.run(["nft", "-t", "list", "table", "inet", "gateway"], check=True).out
    for words in ("delete table inet gateway", "flush table inet gateway", "flush chain inet gateway prerouting",
                  "delete chain inet gateway deliver", "add rule inet gateway prerouting accept"):  # fmt: skip
        done = house.gateway.run(["nft", *words.split()])
        assert not done.ok
        assert "not permitted" in done.err or "No such file" in done.err, done.err
    assert house.gateway.run(["nft", "-t", "list", "table", "inet", "gateway"], check=True).out == before
    answers(flows)


@pytest.mark.parametrize("name", ["firewalld", "fw4"])
def test_t7_a_firewall_reloads(alone: House, flows: dict[str, socket.socket], name: str) -> None:
    """As nftables.service and fw4 do it: all away, the own rules anew, in one transaction; three times in a row."""
    house = alone
    (neighbour,) = (one for one in EVERY if one.name == name)
    before = listed(house)
    try:
        for _ in range(3):
            house.nft("flush ruleset\n" + neighbour.files[0].read_text())
            answers(flows)
        poll(lambda: listed(house) == before, "the base table does not come back")
        assert f"table {neighbour.tables[0]}" in house.gateway.run(["nft", "list", "tables"]).out, "theirs stands too"
    finally:
        house.lines(*(f"nft delete table {table}" for table in neighbour.tables))
    answers(flows)


def test_t7_what_is_flushed_while_it_is_restored_comes_back(alone: House, flows: dict[str, socket.socket]) -> None:
    """Two seconds long, as often as it can be done: some of it comes just after the table was put there."""
    house = alone
    before, times = listed(house), restored(house)

    def flush() -> int:
        count, end, library = 0, time.monotonic() + 2, Library()
        while time.monotonic() < end:
            library.run("flush ruleset\n")
            count += 1
        return count

    assert house.gateway.call(flush) > 20
    answers(flows)
    poll(lambda: listed(house) == before, "the base table does not come back")
    poll(lambda: restored(house) > times, "status does not count it")
    poll(lambda: "standing" not in house.status()["problems"], "it is still a problem")
    answers(flows)


def test_t7_what_others_add_is_theirs(alone: House) -> None:
    """An element, a rule, a table of others: nothing is restored."""
    house = alone
    times = restored(house)
    house.lines(
        "nft add element inet gateway_base open_tcp '{ 4443 }'",
        "nft insert rule inet gateway_base forward counter",
        "nft add table inet other",
        "nft delete table inet other",
        # And a mark that comes later: what is looked at next is younger than all of these.
        "nft delete element inet gateway_base open_udp '{ 500 }'",
    )
    poll(lambda: restored(house) == times + 1, "the element does not come back")
    house.lines("nft add element inet gateway_base open_tcp '{ 4443 }'", "nft add table inet other",
                "nft delete table inet other")  # fmt: skip
    poll(lambda: house.far("udp", WAN[4], 500) == f"gateway {SERVER[4]}", "the port stays closed")
    assert restored(house) == times + 1
    assert "4443" in listed(house)
    house.lines("nft delete element inet gateway_base open_tcp '{ 4443 }'")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t7_the_ip_rule_comes_back(alone: House, kind: str, family: int) -> None:
    """systemd-networkd deletes rules and routes that it has not made."""
    house = alone
    house.lines(f"ip -{family} rule del priority {mark.RULE_PRIORITY}", f"ip -{family} route flush table {mark.TABLE}")
    poll(lambda: house.ask(kind, house.client, PROXIED[family], SITE, 0.5) == f"server {PROXIED[family]}",
         "what is for userspace does not come in again")  # fmt: skip
    assert house.ask(kind, house.client, DIRECT[family]) == f"server {WAN[4] if family == 4 else CLIENT[6]}"
