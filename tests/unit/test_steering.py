"""Signs of life go on whatever fails beside them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.core.errors import KernelError
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
