"""The epoll set of all flows' sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

import pytest

from gateway.kernel.edge import Edge


@pytest.mark.parametrize("leave", [Edge.remove, Edge.forget])
def test_a_number_that_is_used_again_has_no_past(leave: Callable[[Edge, int], None]) -> None:
    """A socket is closed under somebody who waits for it and has been cancelled, but did not run since; the next socket
    gets its number and is waited for at once."""

    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        old, far = socket.socketpair()
        number = old.fileno()
        waiting = asyncio.ensure_future(edge.readable(old))
        await asyncio.sleep(0)
        waiting.cancel()
        leave(edge, number)
        old.close()
        new, peer = socket.socketpair()
        if new.fileno() != number:
            new = socket.socket(fileno=os.dup2(new.detach(), number))
        peer.send(b"?")
        async with asyncio.timeout(10):
            await edge.readable(new)
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        for sock in (far, new, peer):
            sock.close()
        edge.close()

    asyncio.run(main())
