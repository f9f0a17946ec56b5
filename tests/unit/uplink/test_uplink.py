"""The order in which an uplink lets others know."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from gateway.config.fields import dec_hook
from gateway.core.errors import KernelError
from gateway.uplink import uplink as module
from gateway.uplink.options import UplinkOptions
from gateway.uplink.uplinks import Uplinks

SERVER = ip_address("192.0.2.53")
OPTIONS = {
    "interface": "wan",
    "static": {"address": ["192.0.2.2/24"], "gateway": ["192.0.2.1"], "dns": [str(SERVER)]},
}


class Killed(BaseException):
    pass


class Netlink:
    """Dies with the first address."""

    async def set_link(self, interface: str, **change: Any) -> None:
        pass

    async def reconcile(self, interface: str, addresses: Any, routes: Any) -> None:
        assert addresses
        raise Killed


def test_name_servers_are_told_before_there_is_an_address(tmp_path: Path, monkeypatch: Any) -> None:
    def refused(*words: Any) -> None:
        raise KernelError("sysctl", 1)

    monkeypatch.setattr(module.sysctl, "write", refused)
    link = SimpleNamespace(index=7, ready=True, up=True, changes=1, hardware=b"\2\0\0\0\0\1", type=1)
    monitor: Any = SimpleNamespace(links={"wan": link})
    options = msgspec.convert(OPTIONS, UplinkOptions, dec_hook=dec_hook)
    told: list[Any] = []

    async def main() -> None:
        uplinks = Uplinks([options], Netlink(), monitor, tmp_path, lambda step: None)  # type: ignore[arg-type]
        uplinks.watch(lambda: told.append(uplinks.servers()))
        one = uplinks._uplinks["wan"] = uplinks._make(options)
        try:
            await one._converge()
        except Killed:
            told.append("address")

    asyncio.run(main())
    assert told == [(SERVER,), "address"]
