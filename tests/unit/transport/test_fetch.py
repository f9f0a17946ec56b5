"""HTTP over streams made of Python: what a server may say, and what is asked of whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.config.url import URL
from gateway.core.address import Address
from gateway.core.errors import PeerError
from gateway.transport import fetch as fetching
from gateway.transport.fetch import HEAD, fetch

NO_EDGE: Any = None
"""These streams have no socket."""


class Script:
    """A stream that says ``said`` in pieces of ``step`` bytes, whatever it hears."""

    def __init__(self, said: bytes, step: int = 1 << 20) -> None:
        self.said, self.step, self.heard, self.closed = said, step, b"", False

    async def read(self, limit: int = 65536) -> bytes:
        data, self.said = self.said[: self.step], self.said[self.step :]
        return data

    async def write(self, data: Any) -> None:
        self.heard += bytes(data)

    async def write_eof(self) -> None: ...

    def unread(self, data: bytes) -> None: ...

    def close(self) -> None:
        self.closed = True


class Net:
    """Answers by ``host:port``, one after another."""

    def __init__(self, step: int = 1 << 20, **answers: list[bytes]) -> None:
        self.answers = {name.replace("_", "."): list(said) for name, said in answers.items()}
        self.step = step
        self.dialled: list[tuple[Address, Script]] = []

    async def connect(self, address: Address) -> Script:
        stream = Script(self.answers[str(address.host)].pop(0), self.step)
        self.dialled.append((address, stream))
        return stream


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def secure(edge: Any, stream: Any, client: Any) -> Any:
        return stream, ""

    monkeypatch.setattr(fetching, "secure", secure)


def run(net: Net, url: str, **more: Any) -> tuple[int, bytes]:
    body = bytearray()
    answer = asyncio.run(fetch(NO_EDGE, net.connect, URL.parse(url), sink=body.extend, **more))
    assert all(stream.closed for _, stream in net.dialled)
    return answer.status, bytes(body)


def ok(body: bytes, *fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *fields, f"Content-Length: {len(body)}", "", ""]).encode() + body


def moved(where: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {where}\r\nContent-Length: 3\r\n\r\nxxx".encode()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "said",
    [
        ok(b"abcde"),
        CHUNKED,
        b"HTTP/1.0 200 OK\r\n\r\nabcde",
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(b"abcde"),
        ok(b"abcde") + b"and more that nobody asked for",
    ],
)
def test_whole_in_any_pieces(said: bytes, step: int) -> None:
    net = Net(step, a_example=[said])
    assert run(net, "http://user:pw@a.example:8080/x?y=z") == (200, b"abcde")
    ((address, stream),) = net.dialled
    assert address == Address("a.example", 8080)
    assert stream.heard.startswith(b"GET /x?y=z HTTP/1.1\r\n")
    assert b"\r\nHost: a.example:8080\r\n" in stream.heard
    assert b"\r\nAuthorization: Basic dXNlcjpwdw==\r\n" in stream.heard
    assert b"\r\nConnection: close\r\n" in stream.heard


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
        CHUNKED[:-9],
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nabc",
    ],
)
def test_what_is_no_answer(said: bytes) -> None:
    with pytest.raises(PeerError):
        run(Net(4096, a_example=[said]), "http://a.example/")


def test_redirects() -> None:
    net = Net(a_example=[moved("//b.example/y"), ok(b"back")], b_example=[moved("https://a.example:444/z?q", 308)])
    assert run(net, "https://user:pw@a.example/x") == (200, b"back")
    asked = [(str(address), stream.heard.split(b" ")[1], b"Authorization" in stream.heard)
             for address, stream in net.dialled]  # fmt: skip
    assert asked == [("a.example:443", b"/x", True), ("b.example:443", b"/y", False), ("a.example:444", b"/z?q", False)]


@pytest.mark.parametrize(
    ("where", "said"),
    [("http://a.example/", "from https to http"), ("ftp://a.example/", "no URL"), ("/", "more than 10")],
)
def test_redirects_that_are_not_followed(where: str, said: str) -> None:
    with pytest.raises(PeerError, match=said):
        run(Net(a_example=[moved(where)] * 20), "https://a.example/")


def test_a_body_that_nobody_wants_is_not_read() -> None:
    net = Net(1, a_example=[b"HTTP/1.1 404 No\r\n\r\n" + b"x" * 1000])
    assert run(net, "http://a.example/") == (404, b"")
    assert net.dialled[0][1].said
    net = Net(a_example=[moved("/elsewhere")])
    assert run(net, "http://a.example/", method="HEAD", redirects=0) == (302, b"")


def test_what_the_sink_says_ends_it() -> None:
    def full(data: bytes) -> None:
        raise PeerError("full")

    net = Net(a_example=[ok(b"abc")])
    with pytest.raises(PeerError, match="full"):
        asyncio.run(fetch(NO_EDGE, net.connect, URL.parse("http://a.example/"), sink=full))
    assert net.dialled[0][1].closed
