"""Whose logins run here, what the kernel is told of it, and which rules have the last word."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, cast

import pytest

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel.steer import Steerer
from gateway.logins import Logins
from gateway.route.mention import names_address
from gateway.route.options import parse_route

FOUR, SIX, NAMED = map(ip_address, ("192.0.2.7", "2001:db8::7", "192.0.2.8"))


class Table:
    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.refuses = False
        self.logins = Logins(NAMED.__eq__, self.rules)
        self.logins.use(cast(Steerer, self))

    def rules(self) -> None:
        if self.refuses:
            raise KernelError("nft", 1)
        self.said.append(("rules", *self.logins.kinds))

    def put(self, name: str, key: bytes, timeout: int) -> None:
        self.said.append(("put", name, key, timeout))

    def take(self, name: str, keys: list[bytes]) -> None:
        self.said.append(("take", name, *keys))

    def told(self, *peers: IP) -> list[tuple[Any, ...]]:
        self.logins.heard(peers)
        said, self.said = self.said, []
        return said


def test_peers_are_elements_and_the_first_of_a_family_a_rule() -> None:
    table = Table()
    assert table.told() == []
    assert table.told(FOUR) == [("put", "peers4", FOUR.packed, 0), ("rules", "peers4")]
    assert table.told(FOUR) == []
    assert table.told(FOUR, SIX) == [("put", "peers6", SIX.packed, 0), ("rules", "peers4", "peers6")]
    assert table.told(SIX) == [("rules", "peers6"), ("take", "peers4", FOUR.packed)]


def test_a_rule_that_names_the_address_has_the_last_word() -> None:
    table = Table()
    assert table.told(NAMED) == []
    assert table.logins.peers == frozenset()


def test_what_the_kernel_refuses_is_tried_again() -> None:
    table = Table()
    table.refuses = True
    with pytest.raises(KernelError):
        table.told(FOUR)
    table.refuses = False
    assert ("rules", "peers4") in table.told(FOUR)


def test_which_rules_name_an_address() -> None:
    rules = [
        {"ip_cidr": ["198.51.100.0/24"], "outbound": "a"},
        {"type": "logical", "mode": "and", "rules": [{"ip_cidr": "2001:db8::7"}, {"port": 22}], "outbound": "a"},
        {"source_ip_cidr": ["192.0.2.0/24"], "outbound": "a"},
        {"ip_is_private": True, "outbound": "a"},
        {"domain": ["192.0.2.7"], "outbound": "a"},
    ]
    found = parse_route({"rules": rules}, "route").rules
    named = [
        ip for ip in ("198.51.100.9", "2001:db8::7", "192.0.2.7", "10.0.0.1") if names_address(found, ip_address(ip))
    ]
    assert named == ["198.51.100.9", "2001:db8::7"]
