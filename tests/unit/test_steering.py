"""Signs of life go on whatever fails beside them; ports that somebody else takes first."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gateway.core.errors import KernelError
from gateway.protocol.tproxy.inbound import Inbound
from gateway.protocol.tproxy.options import InboundOptions
from gateway.steering import Kernel


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, ""), KernelError("nft", errno.ENOBUFS), ValueError()], ids=repr
)
def test_the_next_beat_is_set_before_anything_fails(error: Exception) -> None:
    set_up: list[Callable[[], None]] = []

    def refuse() -> None:
        raise error

    one: Any = Kernel.__new__(Kernel)
    loop = SimpleNamespace(call_later=lambda delay, work: set_up.append(work))
    one._timers, one._steerer = {}, SimpleNamespace(beat=refuse)
    one._plane = SimpleNamespace(
        edge=SimpleNamespace(loop=loop), router=SimpleNamespace(limit=SimpleNamespace(full=()))
    )
    with contextlib.suppress(type(error)):
        one._beat()
    assert set_up == [one._beat]


class Ports:
    """Ports that somebody takes between the look and the bind, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def bind(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.EADDRINUSE, "")


@pytest.mark.parametrize(("times", "works"), [(0, True), (3, True), (99, False)])
def test_the_listener_of_captured_names_tries_other_ports(
    monkeypatch: pytest.MonkeyPatch, times: int, works: bool
) -> None:
    ports = Ports(times)

    async def bind() -> None:
        ports.bind()

    monkeypatch.setattr("gateway.steering.Listener", lambda *_: SimpleNamespace(start=bind))
    one: Any = Kernel.__new__(Kernel)
    one._dns, one._plane = None, SimpleNamespace(resolver=None, wiring=None)
    state: Any = SimpleNamespace(options=SimpleNamespace(capture_dns=True), config=SimpleNamespace(dns_servers=("a",)))
    with contextlib.nullcontext() if works else pytest.raises(OSError, match=str(errno.EADDRINUSE)):
        asyncio.run(one._listen(state))
    assert (one._dns is not None) is works


@pytest.mark.parametrize(("port", "times", "works"), [(0, 3, True), (0, 99, False), (7893, 1, False)])
def test_tproxy_tries_other_ports_where_none_is_given(
    monkeypatch: pytest.MonkeyPatch, port: int, times: int, works: bool
) -> None:
    ports, tried = Ports(times), []
    one: Any = Inbound("in", InboundOptions(listen_port=port), cast(Any, None))
    monkeypatch.setattr("gateway.protocol.tproxy.inbound.Replies", lambda _: SimpleNamespace(close=lambda: None))

    def listen() -> None:
        tried.append(one.port)
        one.port = one.port or 1024 + len(tried)
        ports.bind()

    monkeypatch.setattr(one, "_listen", listen)
    with contextlib.nullcontext() if works else pytest.raises(OSError, match=str(errno.EADDRINUSE)):
        asyncio.run(one.start())
    assert set(tried) == {port}
    assert one.port == (1024 + len(tried) if works else port)
