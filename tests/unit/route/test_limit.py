"""How many flows a device may hold, who hears of one that wants more, and how many fit."""

from __future__ import annotations

import resource
from ipaddress import ip_address

import pytest

from gateway.core.address import IP
from gateway.route.limit import Limit, fitting

ONE, OTHER = (ip_address(f"192.0.2.{last}") for last in (1, 2))


def test_a_device_at_its_cap_is_noticed_once_and_until_one_of_its_flows_ends() -> None:
    limit = Limit(lambda: 0.0, tcp=2, udp=1)
    heard: list[tuple[str, IP | str]] = []
    limit.notice = lambda network, device: heard.append((network, device))
    assert [limit.enter("tcp", ONE) for _ in range(4)] == [True, True, False, False]
    assert limit.enter("tcp", OTHER)
    assert limit.enter("udp", ONE)
    assert limit.full == {("tcp", ONE)}
    assert heard == [("tcp", ONE)]
    limit.leave("tcp", ONE)
    assert not limit.full
    assert [limit.enter("tcp", ONE) for _ in range(2)] == [True, False]
    assert heard == [("tcp", ONE)] * 2


@pytest.mark.parametrize(("soft", "flows"), [(1024, 128), (20000, 2500), (65536, 4096), (resource.RLIM_INFINITY, 4096)])
def test_as_many_as_fit(monkeypatch: pytest.MonkeyPatch, soft: int, flows: int) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert fitting(4096, 2) == flows
