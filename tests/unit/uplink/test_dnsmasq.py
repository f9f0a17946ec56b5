"""The watch over dnsmasq, without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gateway.uplink.dnsmasq import daemon


def test_it_stops_watching_in_the_moment_in_which_dnsmasq_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def ended(pid: int) -> None:
            await gone

        monkeypatch.setattr(daemon, "_gone", ended)
        one = daemon.Daemon(tmp_path / "run", tmp_path / "state", lambda step: None)
        one._task = asyncio.create_task(one._watch())
        await asyncio.sleep(0.01)
        gone.set_result(None)
        async with asyncio.timeout(5):
            await one.stop()

    asyncio.run(main())
