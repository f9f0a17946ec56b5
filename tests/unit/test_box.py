"""A reload that does not come to its end leaves what stood before, whatever went wrong; a stop comes after it."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway import catalog
from gateway.box import Box
from gateway.config.load import load
from gateway.config.merge import Source
from gateway.core.errors import GatewayError
from gateway.protocol.direct.inbound import Inbound as Direct
from gateway.protocol.socks.inbound import Inbound as Socks

SET = {"rule_set": [{"tag": "some", "rules": [{"domain": "a.example"}]}]}


def config(*inbounds: dict[str, Any], **route: Any) -> Any:
    value = {"inbounds": [{"listen": "127.0.0.1", **inbound} for inbound in inbounds], "route": route}
    return load([Source("c.json", json.dumps(value), value)], catalog)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def one(port: int) -> dict[str, Any]:
    return {"type": "socks", "tag": "in", "listen_port": port}


def other(port: int) -> dict[str, Any]:
    return {"type": "direct", "tag": "other", "listen_port": port, "override_address": "192.0.2.1"}


@pytest.mark.parametrize("error", [KeyError("home"), ValueError("no name"), OSError(98, "taken")])
def test_an_inbound_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def refuse(self: Direct) -> None:
        raise error

    async def main() -> None:
        port, second = free_port(), free_port()
        box = Box(config(one(port)), tmp_path / "run", tmp_path / "state")
        await box.start()
        try:
            before = box.plane.wiring.sets
            monkeypatch.setattr(Direct, "start", refuse)
            with pytest.raises(GatewayError, match=str(error.args[-1])):
                await box.reload(config(other(second), **SET))
            assert listens(port)
            assert box.plane.wiring.sets is before
            monkeypatch.undo()
            await box.reload(config(other(second)))
            assert (listens(port), listens(second)) == (False, True)
        finally:
            await box.stop()

    asyncio.run(main())


def test_what_cannot_listen_again_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = []
    begin = Socks.start

    async def refuse(self: Any) -> None:
        raise KeyError("home")

    async def at_first_refuse(self: Socks) -> None:
        refused.append(self)
        if len(refused) == 1:
            raise OSError(98, "taken")
        await begin(self)

    async def main() -> None:
        port = free_port()
        box = Box(config(one(port)), tmp_path / "run", tmp_path / "state")
        await box.start()
        try:
            monkeypatch.setattr(Direct, "start", refuse)
            monkeypatch.setattr(Socks, "start", at_first_refuse)
            with pytest.raises(GatewayError):
                await box.reload(config(other(free_port())))
            assert listens(port)
        finally:
            await box.stop()

    asyncio.run(main())


def test_inbounds_start_with_the_rule_sets_of_their_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    seen = []
    begin = Direct.start

    async def look(self: Any) -> None:
        seen.append(set(self._wiring.sets))
        await begin(self)

    async def main() -> None:
        box = Box(config(one(free_port())), tmp_path / "run", tmp_path / "state")
        await box.start()
        try:
            monkeypatch.setattr(Direct, "start", look)
            await box.reload(config(other(free_port()), **SET))
            assert seen == [{"some"}]
        finally:
            await box.stop()

    asyncio.run(main())


def test_a_stop_ends_after_the_reload_that_is_at_work_and_before_the_next(tmp_path: Path) -> None:
    first, second, third = free_port(), free_port(), free_port()

    async def main() -> None:
        box = Box(config(one(first)), tmp_path / "run", tmp_path / "state")
        await box.start()
        assert listens(first)
        go_on, prepare = asyncio.Event(), box.plane.prepare

        async def slow(wanted: Any) -> Any:
            await go_on.wait()
            return await prepare(wanted)

        box.plane.prepare = slow  # type: ignore[method-assign]
        reload = asyncio.create_task(box.reload(config(one(second))))
        await asyncio.sleep(0)
        stop = asyncio.create_task(box.stop())
        later = asyncio.create_task(box.reload(config(one(third))))
        await asyncio.sleep(0.05)
        assert not stop.done()
        go_on.set()
        await asyncio.gather(reload, stop)
        with pytest.raises(GatewayError, match="stops"):
            await later
        assert not any(listens(number) for number in (first, second, third))

    asyncio.run(main())
