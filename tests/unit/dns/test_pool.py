"""Encrypted servers' connections without the encryption: what becomes of queries when connections end."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Awaitable, Callable

import h2.config
import h2.connection
import h2.events
import h2.settings
import msgspec
import pytest

from gateway.core.errors import DialError, PeerError
from gateway.dns import message, pool
from gateway.dns.http import H1Line, H2Line, Request
from gateway.dns.pool import Closed, Line, Pool
from gateway.dns.server.https import Options
from gateway.dns.server.tls import Pipeline
from gateway.kernel.edge import Edge
from gateway.transport.tcp import SocketStream

Script = Callable[[SocketStream, int], Awaitable[None]]
Kind = Callable[[SocketStream], Line]

LINES: dict[str, Kind] = {
    "dot": lambda stream: Pipeline(stream, "server"),
    "h2": lambda stream: H2Line(stream, Request("dns.test"), "server"),
    "h1": lambda stream: H1Line(stream, Request("dns.test"), "server"),
}


class Bench:
    """A pool whose connections end in ``script(stream, number of the connection)``."""

    def __init__(self, edge: Edge, kind: Kind, script: Script) -> None:
        self.dials = 0
        self._edge = edge
        self._kind = kind
        self._script = script
        self._tasks: list[asyncio.Task[None]] = []
        self.pool = Pool(self._dial)

    async def _dial(self) -> Line:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._tasks.append(asyncio.ensure_future(self._serve(SocketStream(self._edge, far), self.dials)))
        self.dials += 1
        await asyncio.sleep(0)
        return self._kind(SocketStream(self._edge, near))

    async def _serve(self, stream: SocketStream, number: int) -> None:
        try:
            await self._script(stream, number)
        except OSError:
            pass
        finally:
            stream.close()

    async def close(self) -> None:
        self.pool.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def run(kind: Kind, script: Script, body: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        bench = Bench(edge, kind, script)
        try:
            async with asyncio.timeout(60):
                await body(bench)
        finally:
            await bench.close()
            edge.close()

    asyncio.run(main())


def query(name: str = "a.test", ident: int = 7) -> bytes:
    return message.query(name, message.A, ident)


def answer(asked: bytes) -> bytes:
    return message.reply(asked, message.NOERROR, [(message.A, b"\xc0\0\2\1")], 60)


async def exactly(stream: SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = await stream.read(size - len(data))
        if not part:
            raise ConnectionResetError
        data += part
    return data


async def receive(stream: SocketStream) -> bytes:
    return await exactly(stream, int.from_bytes(await exactly(stream, 2), "big"))


async def say(stream: SocketStream, data: bytes) -> None:
    await stream.write(len(data).to_bytes(2, "big") + data)


def names(count: int) -> list[bytes]:
    return [query(f"n{number}.test", 7) for number in range(count)]


def test_answers_in_any_order() -> None:
    async def script(stream: SocketStream, number: int) -> None:
        found = [await receive(stream) for _ in range(20)]
        assert len({one[:2] for one in found}) == 20
        for one in reversed(found):
            await say(stream, answer(one))

    async def body(bench: Bench) -> None:
        asked = names(20)
        assert await asyncio.gather(*map(bench.pool.ask, asked)) == [answer(one) for one in asked]
        assert bench.dials == 1

    run(LINES["dot"], script, body)


def test_who_comes_while_it_is_dialled_waits_for_the_same() -> None:
    """In every turn of the loop until it stands one more."""

    async def script(stream: SocketStream, number: int) -> None:
        while True:
            await say(stream, answer(await receive(stream)))

    async def body(bench: Bench) -> None:
        asked = []
        for one in names(20):
            asked.append(asyncio.ensure_future(bench.pool.ask(one)))
            await asyncio.sleep(0)
        assert await asyncio.gather(*asked) == [answer(one) for one in names(20)]
        assert bench.dials == 1

    run(LINES["dot"], script, body)


def test_nobody_dials_for_ever() -> None:
    """Connections that are closed before anything is asked."""

    async def body(bench: Bench) -> None:
        dial = bench.pool._dial

        async def closed() -> Line:
            line = await dial()
            line.close()
            return line

        bench.pool._dial = closed
        for _ in range(3):
            with pytest.raises(Closed):
                await bench.pool.ask(query())
        assert bench.dials == 3 * pool.TRIES

    async def script(stream: SocketStream, number: int) -> None: ...

    for kind in LINES.values():
        run(kind, script, body)


def test_answers_that_are_not_meant_are_passed_over() -> None:
    async def script(stream: SocketStream, number: int) -> None:
        asked = await receive(stream)
        other = answer(query("other.test", int.from_bytes(asked[:2], "big")))
        for wrong in (b"", asked, asked[:2], other, bytes((asked[0] ^ 1,)) + answer(asked)[1:]):
            await say(stream, wrong)
        await say(stream, answer(asked))

    async def body(bench: Bench) -> None:
        assert await bench.pool.ask(query()) == answer(query())

    run(LINES["dot"], script, body)


async def http2(
    stream: SocketStream, serve: Callable[[h2.connection.H2Connection, int, bytes], bool], most: int = 100
) -> None:
    """A server's end; ``serve`` may answer each request, and ends the connection by False."""
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    conn.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: most}
    )
    conn.initiate_connection()
    bodies: dict[int, bytes] = {}
    on = True
    while on:
        await stream.write(conn.data_to_send())
        data = await stream.read()
        if not data:
            return
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
                conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                on = serve(conn, event.stream_id, bodies.get(event.stream_id, b"")) and on
    await stream.write(conn.data_to_send())


def reply(conn: h2.connection.H2Connection, number: int, body: bytes, status: str = "200") -> bool:
    conn.send_headers(number, [(":status", status), ("content-type", "application/dns-message")])
    conn.send_data(number, body, end_stream=True)
    return True


def plain_http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def http1(stream: SocketStream) -> bytes:
    """Body of one request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += await exactly(stream, 1)
    size = next(int(line.split(b":")[1]) for line in data.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return await exactly(stream, size)


async def once(stream: SocketStream, kind: str, answered: bool) -> None:
    """Take one query, answer it or not, close."""
    if kind == "dot":
        asked = await receive(stream)
        if answered:
            await say(stream, answer(asked))
    elif kind == "h1":
        asked = await http1(stream)
        if answered:
            await stream.write(plain_http(answer(asked)))
    else:
        await http2(stream, lambda conn, number, body: answered and reply(conn, number, answer(body)) and False)


@pytest.mark.parametrize("kind", LINES)
def test_a_server_that_closes_after_each_answer(kind: str) -> None:
    async def body(bench: Bench) -> None:
        for asked in names(5):
            assert await bench.pool.ask(asked) == answer(asked)
        assert bench.dials == 5

    run(LINES[kind], lambda stream, _: once(stream, kind, True), body)


@pytest.mark.parametrize("kind", LINES)
def test_a_query_outlives_its_connection(kind: str) -> None:
    async def body(bench: Bench) -> None:
        assert await bench.pool.ask(query()) == answer(query())
        assert bench.dials == 3

    run(LINES[kind], lambda stream, number: once(stream, kind, number == 2), body)


@pytest.mark.parametrize("kind", LINES)
def test_a_server_that_never_answers(kind: str) -> None:
    async def body(bench: Bench) -> None:
        with pytest.raises(Closed):
            await bench.pool.ask(query())
        assert bench.dials == pool.TRIES

    run(LINES[kind], lambda stream, _: once(stream, kind, False), body)


@pytest.mark.parametrize("kind", LINES)
def test_a_connection_that_has_gone_silent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "WAIT", 0.05)

    async def script(stream: SocketStream, number: int) -> None:
        if number:
            await once(stream, kind, True)
        while await stream.read():
            pass

    async def body(bench: Bench) -> None:
        assert await bench.pool.ask(query()) == answer(query())
        assert bench.dials == 2

    run(LINES[kind], script, body)


def test_a_slow_answer_on_a_connection_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query goes out again on the same; its first answer, late, is nobody's."""
    monkeypatch.setattr(pool, "WAIT", 1.0)
    begun = asyncio.Event()

    async def script(stream: SocketStream, number: int) -> None:
        slow = [await receive(stream)]
        begun.set()
        while True:
            asked = await receive(stream)
            if message.question(asked).name != "slow.test":
                await say(stream, answer(asked))
                continue
            slow.append(asked)
            for one in slow:
                await say(stream, answer(one))

    async def body(bench: Bench) -> None:
        slow = asyncio.ensure_future(bench.pool.ask(query("slow.test")))
        await begun.wait()
        monkeypatch.setattr(pool, "WAIT", 60.0)  # for whatever is asked from now on, on a machine that is busy too
        while not slow.done():
            assert await bench.pool.ask(query()) == answer(query())
            await asyncio.sleep(0.02)
            if bench.dials > 1:
                break
        assert await slow == answer(query("slow.test"))
        assert bench.dials == 1

    run(LINES["dot"], script, body)


@pytest.mark.parametrize("kind", LINES)
def test_a_long_query(kind: str) -> None:
    """Over one frame of HTTP/2."""
    long = query()[:-2] + (20000).to_bytes(2, "big") + bytes(20000)

    async def body(bench: Bench) -> None:
        assert await bench.pool.ask(long) == answer(long)

    run(LINES[kind], lambda stream, _: once(stream, kind, True), body)


def test_a_server_that_cannot_be_reached() -> None:
    async def main() -> None:
        async def dial() -> Line:
            raise DialError("nobody there")

        with pytest.raises(DialError, match="nobody there"):
            await Pool(dial).ask(query())

    asyncio.run(main())


@pytest.mark.parametrize("kind", LINES)
def test_more_queries_than_one_connection_takes(kind: str) -> None:
    async def script(stream: SocketStream, number: int) -> None:
        if kind == "h2":
            await http2(stream, lambda conn, number, body: reply(conn, number, answer(body)), most=3)
        while True:
            if kind == "dot":
                await say(stream, answer(await receive(stream)))
            else:
                await stream.write(plain_http(answer(await http1(stream))))

    async def body(bench: Bench) -> None:
        asked = names(300)
        assert await asyncio.gather(*map(bench.pool.ask, asked)) == [answer(one) for one in asked]
        assert 1 < bench.dials <= pool.MOST

    run(LINES[kind], script, body)


def test_http2_goaway_and_reset() -> None:
    """What the server says it has not seen, and what it breaks off, goes out again; what it has seen is waited for."""

    def first(conn: h2.connection.H2Connection, number: int, body: bytes) -> bool:
        if number == 5:
            conn.reset_stream(1)
            reply(conn, 3, answer(query("n1.test", 0)))
            conn.close_connection(last_stream_id=3)
        return True

    async def script(stream: SocketStream, number: int) -> None:
        serve = first if number == 0 else lambda conn, at, body: reply(conn, at, answer(body))
        await http2(stream, serve)

    async def body(bench: Bench) -> None:
        asked = names(3)
        assert await asyncio.gather(*map(bench.pool.ask, asked)) == [answer(one) for one in asked]
        assert bench.dials == 2

    run(LINES["h2"], script, body)


@pytest.mark.parametrize("case", ["status", "size", "question"])
def test_http2_answers_that_are_wrong(case: str) -> None:
    def serve(conn: h2.connection.H2Connection, number: int, body: bytes) -> bool:
        if case == "size":
            conn.send_headers(number, [(":status", "200")])
            for _ in range(3):
                conn.send_data(number, bytes(16384))
            conn.send_data(number, bytes(16383), end_stream=True)
            return True
        wrong = answer(query("other.test", 0)) if case == "question" else b""
        return reply(conn, number, wrong, "200" if case == "question" else "503")

    async def body(bench: Bench) -> None:
        with pytest.raises(PeerError):
            await bench.pool.ask(query())

    run(LINES["h2"], lambda stream, _: http2(stream, serve), body)


def test_http1_chunked_and_closing() -> None:
    async def script(stream: SocketStream, number: int) -> None:
        found = answer(await http1(stream))
        chunks = b"".join(b"1\r\n" + found[at : at + 1] + b"\r\n" for at in range(len(found)))
        await stream.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        found = answer(await http1(stream))
        await stream.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + found)

    async def body(bench: Bench) -> None:
        for asked in names(4):
            assert await bench.pool.ask(asked) == answer(asked)
        assert bench.dials == 2

    run(LINES["h1"], script, body)


def test_requests() -> None:
    asked = query()
    method, target, fields, body = Request("a", headers=[("x", "1"), ("accept", "no")]).of(asked)
    assert (method, target, body) == ("POST", "/dns-query", b"\0\0" + asked[2:])
    assert ("x", "1") in fields
    assert [value for name, value in fields if name == "accept"] == ["application/dns-message"]
    method, target, fields, body = Request("a", "/q?b=1", get=True).of(asked)
    assert (method, body) == ("GET", b"")
    text = target.removeprefix("/q?b=1&dns=")
    assert base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)) == b"\0\0" + asked[2:]
    assert "=" not in text


@pytest.mark.parametrize(
    ("fields", "authority"),
    [
        ({"server": "dns.test"}, "dns.test"),
        ({"server": "192.0.2.1", "server_port": 8443}, "192.0.2.1:8443"),
        ({"server": "2001:db8::1"}, "[2001:db8::1]"),
        ({"server": "192.0.2.1", "tls": {"server_name": "dns.test"}}, "dns.test"),
        ({"server": "192.0.2.1", "tls": {"server_name": "dns.test", "disable_sni": True}}, "192.0.2.1"),
        ({"server": "192.0.2.1", "headers": {"Host": "h.test"}}, "h.test"),
        ({"server": "d\u00fcns.test"}, "xn--dns-hoa.test"),
    ],
)
def test_whose_name_a_request_has(fields: dict[str, object], authority: str) -> None:
    assert msgspec.convert(fields, Options).request.authority == authority


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "dns-query"}, {"path": "/a b"}, {"path": "/\u00fc"}, {"path": "/a\nb"}, {"headers": {"A b": "1"}},
        {"headers": {"Connection": "close"}}, {"headers": {"A": "1\r\nB: 2"}}, {"headers": {"A": ["1", "\u00fc"]}},
        {"server": "a" * 64 + ".test"}, {"method": "PUT"},
    ],
)  # fmt: skip
def test_options_that_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"server": "dns.test", **fields}, Options)
