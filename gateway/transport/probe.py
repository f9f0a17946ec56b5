"""How long an outbound takes to bring an answer from a web server: what groups choose by."""

from __future__ import annotations

import asyncio
import time

from gateway.config.url import URL
from gateway.core.address import Address
from gateway.core.contracts import Edge, IPv4Address, Outbound
from gateway.core.errors import DialError
from gateway.core.flow import Flow
from gateway.core.stream import Stream
from gateway.transport.fetch import fetch, trusting

PATIENCE = 15.0
"""Seconds that a probe may take."""
NOWHERE = Address(IPv4Address(0), 0)


async def probe(edge: Edge, outbound: Outbound, url: URL, patience: float = PATIENCE) -> int:
    """Milliseconds from the dial to the head of the answer to HEAD, whatever its status; at least 1. Raises DialError,
    PeerError and what else the outbound raises."""

    async def connect(address: Address) -> Stream:
        return await outbound.connect(Flow("tcp", "", "", NOWHERE, address), address)

    if url.scheme == "https":
        await trusting(url.host)
    begun = time.perf_counter()
    try:
        async with asyncio.timeout(patience):
            await fetch(edge, connect, url, "HEAD", redirects=0)
    except TimeoutError:
        raise DialError(f"{url.authority}: no answer within {patience:g} s") from None
    except OSError as error:
        raise DialError(f"{url.authority}: {error.strerror or error}") from error
    return max(1, round((time.perf_counter() - begun) * 1000))
