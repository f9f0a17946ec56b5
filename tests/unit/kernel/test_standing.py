"""One refusal is not the end of what keeps watch: it looks again."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any, cast

import pytest

from gateway.core.errors import KernelError
from gateway.kernel import standing
from gateway.kernel.netlink import monitor
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.reaper import Reaper
from gateway.kernel.standing import Standing

FULL = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ENOSPC, "No space left on device")]
REFUSALS = [*FULL, KernelError("nft", errno.ENOBUFS)]


class Host:
    """In place of the watch, the monitor and netlink: refuses what it is asked for as long as there are errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.steering = False

    def whole(self) -> bool:
        return not self.errors

    def restore(self) -> None:
        raise self.errors.pop()

    def watch_addresses(self, moved: object) -> None: ...

    def unwatch(self, *callbacks: object) -> None: ...

    async def links(self) -> dict[str, Any]:
        if self.errors:
            raise self.errors.pop()
        return {}


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_what_cannot_be_restored_is_tried_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "INTERVAL", 0)
    host = Host(error, error)

    async def main() -> None:
        one = Standing(cast(Any, host), host.restore, cast(Any, host), cast(Any, host))
        task = asyncio.create_task(one.run())
        seen = set()
        async with asyncio.timeout(5):
            while host.errors or one.problem:
                await asyncio.sleep(0)
                seen.add(one.problem)
        assert str(error) in seen
        assert not task.done()
        task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_links_are_looked_at_again(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "RETRY", 0)

    async def main() -> None:
        one = Monitor(cast(Any, Host(error, error)))
        task = asyncio.create_task(one.run())
        async with asyncio.timeout(5):
            await one.ready.wait()
        task.cancel()

    asyncio.run(main())


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_reaper_that_cannot_be_started(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flags: int) -> tuple[int, int]:
        raise error

    monkeypatch.setattr(os, "pipe2", refuse)
    with pytest.raises(KernelError) as told:
        Reaper()
    assert told.value.errno == error.errno
