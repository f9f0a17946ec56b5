"""T4: one address with several names. Packets through a whole gateway whose names expire after seconds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

import pytest

from gateway.lab.stage import poll

from .naming import CLIENTS, IMPATIENT, SITES, Naming, naming

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
FAMILIES = (4, 6)
numbers = count(1)
PROXIED, KERNEL = ("far", "sniff"), ("direct", "kernel")
RELAYED = ("direct", "sniff")


@pytest.fixture(scope="module")
def house() -> Iterator[Naming]:
    if os.geteuid():
        pytest.skip("needs root")
    with naming(IMPATIENT) as house:
        yield house


class Names(NamedTuple):
    """That no test has used, no cache has and no connection has shown."""

    number: int

    @property
    def near(self) -> str:
        return f"near{self.number}.example"

    @property
    def far(self) -> str:
        return f"www{self.number}.far.example"

    def site(self, family: int) -> str:
        return f"{SITES[family]}{self.number}"


@pytest.fixture
def names() -> Names:
    return Names(next(numbers))


@pytest.fixture(autouse=True)
def long_lived(house: Naming) -> None:
    house.far.ttl = 600
    house.far.zone.clear()


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_direct_name_first(house: Naming, family: int, names: Names) -> None:
    site = names.site(family)
    house.resolve(names.near, site)
    assert house.connect(site, names.near) == KERNEL
    house.resolve(names.far, site, client=1)
    assert house.connect(site, names.near) == RELAYED
    assert house.connect(site, names.far, client=1) == PROXIED
    told = house.explain(site, CLIENTS[family][0])
    assert told["verdict"] == "sniff"


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_split_by_sni(house: Naming, family: int, names: Names) -> None:
    site = names.site(family)
    house.resolve(names.near, site)
    assert house.connect(site, names.near, port=443, tls=True) == KERNEL
    house.resolve(names.far, site)
    assert house.connect(site, names.near, port=443, tls=True) == RELAYED
    assert house.connect(site, names.far, port=443, tls=True) == PROXIED


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_proxied_name_first(house: Naming, family: int, names: Names) -> None:
    site = names.site(family)
    house.resolve(names.far, site)
    assert house.connect(site, names.far) == ("far", "user"), "no need to wait for a sniff"
    house.resolve(names.near, site, client=1)
    assert house.connect(site, names.near, client=1) == RELAYED
    assert house.connect(site, names.far) == PROXIED


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_expiry_returns_the_address_to_the_kernel(house: Naming, family: int, names: Names) -> None:
    site = names.site(family)
    house.resolve(names.near, site)
    house.far.ttl = 1
    house.resolve(names.far, site)
    assert house.connect(site, names.near) == RELAYED
    poll(lambda: house.connect(site, names.near) == KERNEL, "the address stays in userspace")


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_cname(house: Naming, family: int, names: Names) -> None:
    """near.example is an alias of a name that would be proxied; only who asks for that one makes a conflict."""
    site, kind = names.site(family), "A" if family == 4 else "AAAA"
    house.far.zone |= {(names.near, "CNAME"): [f"cdn.{names.far}."], (f"cdn.{names.far}", kind): [site]}
    answer = house.ask(names.near, kind)
    assert len(answer.answer) == 2
    assert house.connect(site, names.near) == KERNEL
    house.ask(f"cdn.{names.far}", kind, client=1)
    assert house.connect(site, names.near) == RELAYED
    assert house.connect(site, f"cdn.{names.far}", client=1) == PROXIED


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_https_hint_is_learned(house: Naming, family: int, names: Names) -> None:
    site = names.site(family)
    house.far.zone[names.near, "HTTPS"] = [f"1 . alpn=h2 ipv{family}hint={site}"]
    house.ask(names.near, "HTTPS")
    assert house.connect(site, names.near) == KERNEL


@pytest.mark.parametrize("order", ["service first", "address first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_t04_https_target(house: Naming, family: int, order: str, names: Names) -> None:
    """The browser resolves the target, and calls the site www.far.example all the same."""
    site, target = names.site(family), f"svc.{names.near}"
    house.far.zone[names.far, "HTTPS"] = [f"1 {target}. alpn=h2"]
    if order == "service first":
        house.ask(names.far, "HTTPS")
    house.resolve(target, site)
    if order == "address first":
        assert house.connect(site, target) == KERNEL
        house.ask(names.far, "HTTPS")
    assert house.connect(site, names.far) == PROXIED
    assert house.connect(site, target) == RELAYED


@pytest.mark.parametrize("family", FAMILIES)
def test_t04_a_name_that_a_connection_showed(house: Naming, family: int, names: Names) -> None:
    """A client that knows a name from elsewhere makes a conflict for a while, and can make nothing else."""
    site = names.site(family)
    house.resolve(names.far, site, client=1)
    assert house.connect(site, names.near, client=0) in (RELAYED, ("direct", "user"))
    assert house.connect(site, names.far, client=1)[0] == "far", "what is shown makes nothing direct"
    other = f"{SITES[family]}{200 + names.number}"
    assert house.connect(other, names.far, client=1) == PROXIED
    house.resolve(names.near, other)
    assert house.connect(other, names.near) == RELAYED
    told = house.explain(other, CLIENTS[family][0])
    assert names.far in told["text"][-1]
    poll(lambda: house.connect(other, names.near) == KERNEL, "the address stays in userspace")
