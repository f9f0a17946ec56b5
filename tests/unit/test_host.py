"""On which uplinks the segment size of TCP is clamped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

import gateway.host
from gateway.config.fields import dec_hook
from gateway.host import Host
from gateway.options import GatewayOptions

OPTIONS = {
    "uplinks": [{"interface": "fibre", "external": True}, {"interface": "ppp0", "external": True}],
    "lans": [{"interface": "lan", "address": ["192.168.8.1/24"]}, {"interface": "guest"}],
}
NARROW: list[tuple[dict[str, int], int, list[str]]] = [
    ({"fibre": 1500, "ppp0": 1492, "lan": 1500, "guest": 1500}, 9000, ["ppp0"]),
    ({"fibre": 1500, "ppp0": 1500, "lan": 1500, "guest": 1500}, 9000, []),
    ({"fibre": 1500, "ppp0": 1500, "lan": 9000, "guest": 1500}, 9000, ["fibre", "ppp0"]),
    ({"fibre": 9000, "ppp0": 1500, "lan": 9000, "guest": 1500}, 9000, ["ppp0"]),
    ({"fibre": 1500, "lan": 1500, "guest": 1500}, 9000, ["ppp0"]),
    ({"fibre": 1500, "ppp0": 1500, "lan": 1500}, 9000, ["fibre", "ppp0"]),
    ({"fibre": 1500, "ppp0": 1500, "lan": 1500, "guest": 1500}, 1480, ["fibre", "ppp0"]),
    ({}, 9000, ["fibre", "ppp0"]),
]


class Watched:
    """Of a table that nobody else changes."""

    def __init__(self, *_: object) -> None:
        pass

    def whole(self) -> bool:
        return True

    def put(self, work: Callable[[], None]) -> bool:
        work()
        return True

    def close(self) -> None:
        pass


class Clamps:
    """What a host has written, whose links are these."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, sizes: dict[str, int], advertised: int) -> None:
        self.written: list[list[str]] = []
        monkeypatch.setattr(gateway.host.base, "clamp", lambda library, wans: self.written.append(list(wans)))
        monkeypatch.setattr(gateway.host, "Library", lambda: None)
        monkeypatch.setattr(gateway.host, "Watch", Watched)
        monkeypatch.setattr(gateway.host.sysctl, "read", lambda name: str(advertised))
        self.host = Host(msgspec.convert(OPTIONS, GatewayOptions, dec_hook=dec_hook), folder, folder)
        self.host._narrow = ["something else"]
        links: Any = {name: SimpleNamespace(name=name, mtu=size) for name, size in sizes.items()}
        self.host.monitor.links = links


@pytest.mark.parametrize(("sizes", "advertised", "narrow"), NARROW)
def test_uplinks_that_carry_less_than_a_lan(
    sizes: dict[str, int], advertised: int, narrow: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clamps = Clamps(monkeypatch, tmp_path, sizes, advertised)
    clamps.host._clamp()
    clamps.host._clamp()
    assert clamps.written == [narrow], "once, and not again while nothing differs"


def test_others_change_rules_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, advertised, narrow = NARROW[0]
    clamps = Clamps(monkeypatch, tmp_path, sizes, advertised)
    with monkeypatch.context() as taken:
        taken.setattr(Watched, "whole", lambda self: False)
        clamps.host._clamp()
    assert not clamps.written, "the table has to be made anew first"
    with monkeypatch.context() as disturbed:
        disturbed.setattr(Watched, "put", lambda self, work: work() is not None)
        clamps.host._clamp()
    clamps.host._clamp()
    clamps.host._clamp()
    assert clamps.written == [narrow, narrow], "what may be gone again is written again"
