"""One HTTP/1.1 request over streams that somebody else dials: what downloads and probes need of RFC 9110 and RFC 9112.

No connection is kept, nothing is asked for compressed. Redirects are followed, at most ``REDIRECTS``, and never from
https to http.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import h11

from gateway import __version__
from gateway.config.url import URL
from gateway.core.address import Address
from gateway.core.contracts import Edge
from gateway.core.errors import PeerError
from gateway.core.stream import Stream
from gateway.tls.client import Client
from gateway.tls.options import OutboundTLSOptions
from gateway.transport.remote import client, secure

REDIRECTS = 10
MOVED = (301, 302, 303, 307, 308)
HEAD = 65536
"""Bytes of an answer's head."""
IDLE = 30.0
"""Seconds that a server may say nothing."""
AGENT = f"gateway/{__version__}"

Connect = Callable[[Address], Awaitable[Stream]]


class Answer(NamedTuple):
    """``headers`` by lower-case name, of several with one name the last; ``url`` is who said it."""

    status: int
    headers: Mapping[str, str]
    url: URL


async def fetch(
    edge: Edge, connect: Connect, url: URL, method: str = "GET", headers: Mapping[str, str] | None = None,
    sink: Callable[[bytes], None] | None = None, redirects: int = REDIRECTS,
) -> Answer:  # fmt: skip
    """The answer to ``method`` at ``url``; the body of a 200 goes to ``sink`` piece by piece, others are not read. With
    ``redirects`` 0 none is followed. Raises PeerError for an answer that is no HTTP, is cut short or redirects too
    often, and what ``sink`` raises; DialError where nobody answers; OSError; TimeoutError after ``IDLE`` seconds of
    silence."""
    for _ in range(redirects + 1):
        answer = await _ask(edge, connect, url, method, headers or {}, sink)
        location = answer.headers.get("location", "")
        if answer.status not in MOVED or not location or not redirects:
            return answer
        try:
            target = url.join(location)
        except ValueError:
            raise PeerError(f"{url.authority} redirects to what is no URL") from None
        if (url.scheme, target.scheme) == ("https", "http"):
            raise PeerError(f"{url.authority} redirects from https to http")
        url = target
    raise PeerError(f"more than {redirects} redirects")


async def trusting(host: str) -> Client:
    """What the system trusts, for ``host``. The first call reads every certificate of it."""
    return await asyncio.to_thread(client, OutboundTLSOptions(), host, Path(), "http/1.1")


async def _ask(
    edge: Edge,
    connect: Connect,
    url: URL,
    method: str,
    headers: Mapping[str, str],
    sink: Callable[[bytes], None] | None,
) -> Answer:
    stream = await connect(Address.of(url.host, url.port))
    try:
        async with asyncio.timeout(IDLE):
            if url.scheme == "https":
                stream, _ = await secure(edge, stream, await trusting(url.host))
            talk = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD)
            await stream.write(talk.send(_request(url, method, headers)) or b"")
            talk.send(h11.EndOfMessage())
        return await _answer(talk, stream, url, sink)
    except h11.RemoteProtocolError as error:
        raise PeerError(f"{url.authority}: {error}") from None
    finally:
        stream.close()


def _request(url: URL, method: str, headers: Mapping[str, str]) -> h11.Request:
    fields = {"Host": url.authority, "User-Agent": AGENT, "Accept": "*/*", "Connection": "close", **headers}
    if url.credentials:
        fields["Authorization"] = url.credentials
    return h11.Request(method=method, target=url.target, headers=list(fields.items()))


async def _answer(
    talk: h11.Connection, stream: Stream, url: URL, sink: Callable[[bytes], None] | None
) -> Answer:  # fmt: skip
    answer: Answer | None = None
    while True:
        event = talk.next_event()
        if event is h11.NEED_DATA:
            async with asyncio.timeout(IDLE):
                talk.receive_data(await stream.read())
        elif isinstance(event, h11.Response):
            found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in event.headers}
            answer = Answer(event.status_code, found, url)
            if sink is None or answer.status != 200:
                return answer
        elif isinstance(event, h11.Data) and sink is not None:
            sink(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage) and answer is not None:
            return answer
        elif isinstance(event, h11.ConnectionClosed):
            raise PeerError(f"{url.authority}: closed without an answer")
