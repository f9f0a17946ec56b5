"""On which uplinks the segment size of TCP is clamped."""

from __future__ import annotations

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


@pytest.mark.parametrize(("sizes", "advertised", "narrow"), NARROW)
def test_uplinks_that_carry_less_than_a_lan(
    sizes: dict[str, int], advertised: int, narrow: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[list[str]] = []
    monkeypatch.setattr(gateway.host.base, "clamp", lambda library, wans: written.append(list(wans)))
    monkeypatch.setattr(gateway.host, "Library", lambda: None)
    host = Host(msgspec.convert(OPTIONS, GatewayOptions, dec_hook=dec_hook), tmp_path, tmp_path)
    host._narrow = ["something else"]
    links: Any = {name: SimpleNamespace(name=name, mtu=size) for name, size in sizes.items()}
    monkeypatch.setattr(gateway.host.sysctl, "read", lambda name: str(advertised))
    host.monitor.links = links
    host._clamp()
    host._clamp()
    assert written == [narrow], "once, and not again while nothing differs"
