"""The bulk path on socket pairs and loopback TCP: every byte, every end of stream, bounded memory."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import PeerError
from gateway.core.stream import Buffer, Layer
from gateway.kernel.edge import Edge
from gateway.kernel.splice import Pipes
from gateway.route.relay import PumpRelay, SocketRelay, relay
from gateway.transport.tcp import SocketStream


class Framed:
    """A toy layer: two bytes of length, then the bytes inverted; a frame of length 0 is the end mark."""

    ended = False

    TABLE = bytes(255 - number for number in range(256))

    def __init__(self) -> None:
        self._kept = b""

    def encode(self, data: Buffer) -> Buffer:
        data = bytes(data).translate(self.TABLE)
        parts = [data[start : start + 1000] for start in range(0, len(data), 1000)]
        return b"".join(struct.pack("!H", len(part)) + part for part in parts)

    def decode(self, data: Buffer) -> Buffer:
        data = self._kept + bytes(data)
        plain, start = b"", 0
        while len(data) - start >= 2:
            (size,) = struct.unpack_from("!H", data, start)
            if size > 1000:
                raise PeerError("frame over 1000 bytes")
            if len(data) - start < 2 + size:
                break
            plain += data[start + 2 : start + 2 + size].translate(self.TABLE)
            start += 2 + size
        self._kept = data[start:]
        return plain

    def encode_eof(self) -> Buffer:
        return b"\0\0"


class Marked(Framed):
    """Heeds the end mark."""

    def decode(self, data: Buffer) -> Buffer:
        plain = super().decode(data)
        self.ended = self.ended or bytes(data).endswith(b"\0\0")
        return plain


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """(a blocking far end, our non-blocking end)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    far.setblocking(False)
    ours.setblocking(False)
    return far, ours


class Bench:
    """A relay between two TCP connections; the test holds the far ends."""

    def __init__(
        self, edge: Edge, client: Layer | None = None, remote: Layer | None = None, early: bytes = b""
    ) -> None:
        self.loop = edge.loop
        self.client, ours = tcp_pair()
        self.remote, theirs = tcp_pair()
        self.pipes = Pipes()
        self.ended: asyncio.Future[BaseException | None] = edge.loop.create_future()
        made = relay(
            edge, self.pipes, SocketStream(edge, ours, client, early), SocketStream(edge, theirs, remote),
            self.ended.set_result,
        )  # fmt: skip
        assert isinstance(made, SocketRelay)
        self.relay = made

    def close(self) -> None:
        self.relay.close()
        self.client.close()
        self.remote.close()
        self.pipes.close()


def run(body: Callable[[Edge], Awaitable[None]]) -> None:
    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(60):
                await body(edge)
        finally:
            edge.close()

    asyncio.run(main())


async def read_all(sock: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while more := await loop.sock_recv(sock, 1 << 20):
        data += more
    return data


def test_half_close_both_ways() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, early=b"first ")
        await bench.loop.sock_sendall(bench.client, b"request")
        bench.client.shutdown(socket.SHUT_WR)
        assert await read_all(bench.remote) == b"first request"
        assert not bench.ended.done()
        await bench.loop.sock_sendall(bench.remote, b"answer after the client's end")
        bench.remote.close()
        assert await read_all(bench.client) == b"answer after the client's end"
        assert await bench.ended is None
        assert (bench.relay.up, bench.relay.down) == (13, 29)
        bench.close()

        bench = Bench(edge)
        bench.remote.shutdown(socket.SHUT_WR)
        assert await read_all(bench.client) == b""
        await bench.loop.sock_sendall(bench.client, b"still talking")
        bench.client.close()
        assert await read_all(bench.remote) == b"still talking"
        assert await bench.ended is None
        bench.close()

    run(body)


@pytest.mark.parametrize("size", [0, 10, 1 << 22])
def test_an_end_mark_ends_one_way_though_the_connection_stays(size: int) -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, remote=Marked())
        data = os.urandom(size)
        sending = asyncio.ensure_future(bench.loop.sock_sendall(bench.remote, bytes(Marked().encode(data)) + b"\0\0"))
        assert await read_all(bench.client) == data
        await sending
        assert not bench.ended.done()
        await bench.loop.sock_sendall(bench.client, b"still talking")
        bench.client.close()
        assert await read_all(bench.remote) == bytes(Marked().encode(b"still talking")) + b"\0\0"
        assert await bench.ended is None
        bench.close()

    run(body)


def test_an_end_mark_that_was_read_before_the_relay_began() -> None:
    async def body(edge: Edge) -> None:
        client, ours = tcp_pair()
        remote, theirs = tcp_pair()
        await edge.loop.sock_sendall(remote, bytes(Marked().encode(b"answer")) + b"\0\0")
        far = SocketStream(edge, theirs, Marked())
        assert await far.read(1) == b"a"
        assert await far.read(5) == b"nswer"
        assert await far.read() == b""
        far.unread(b"answer")
        ended: asyncio.Future[BaseException | None] = edge.loop.create_future()
        relay(edge, pipes := Pipes(), SocketStream(edge, ours), far, ended.set_result)
        assert await read_all(client) == b"answer"
        client.close()
        assert await read_all(remote) == b"\0\0"
        assert await ended is None
        remote.close()
        pipes.close()

    run(body)


@pytest.mark.parametrize("side", ["client", "remote"])
def test_a_reset_is_passed_on_as_a_reset(side: str) -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge)
        broken, other = (bench.client, bench.remote) if side == "client" else (bench.remote, bench.client)
        await bench.loop.sock_sendall(broken, b"x")
        assert await bench.loop.sock_recv(other, 10) == b"x"
        broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        broken.close()
        with pytest.raises(ConnectionResetError):
            await bench.loop.sock_recv(other, 10)
        assert isinstance(await bench.ended, ConnectionResetError)
        bench.close()

    run(body)


def test_a_reset_is_seen_while_the_other_side_is_stalled() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge)
        await fill(bench)
        bench.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        bench.client.close()
        assert isinstance(await bench.ended, ConnectionResetError)
        bench.close()

    run(body)


async def fill(bench: Bench) -> int:
    """Send until the relay takes no more for a while; bytes sent."""
    sent, quiet = 0, 0
    while quiet < 20:
        try:
            sent += bench.client.send(bytes(1 << 16))
            quiet = 0
        except BlockingIOError:
            quiet += 1
        await asyncio.sleep(0.005)
    return sent


@pytest.mark.parametrize("layered", [False, True])
def test_a_slow_reader_holds_the_sender_back_in_bounded_memory(layered: bool) -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, remote=Framed() if layered else None)
        bench.remote.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sent = await fill(bench)
        side = bench.relay.client
        assert len(side.peer.out) <= 1 << 19
        assert side.pipe is None or side.pipe.held <= 1 << 20
        assert bench.pipes.stalled == 1
        bench.client.shutdown(socket.SHUT_WR)
        wire = await read_all(bench.remote)
        plain = bytes(Framed().decode(wire)) if layered else wire
        assert len(plain) == sent
        assert bench.pipes.stalled == 0
        bench.close()
        assert await bench.ended is not None

    run(body)


async def transfer(bench: Bench, data: bytes, back: bytes) -> tuple[bytes, bytes]:
    async def send(sock: socket.socket, payload: bytes) -> None:
        await bench.loop.sock_sendall(sock, payload)
        sock.shutdown(socket.SHUT_WR)

    got = await asyncio.gather(
        read_all(bench.remote), read_all(bench.client), send(bench.client, data), send(bench.remote, back)
    )
    assert await bench.ended is None
    return got[0], got[1]


def test_splice_carries_every_byte_both_ways() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge)
        data, back = os.urandom(24 << 20), os.urandom(9 << 20)
        spliced = 0
        take = bench.pipes.take

        def counted() -> object:
            nonlocal spliced
            spliced += 1
            return take()

        bench.pipes.take = counted  # type: ignore[method-assign,assignment]
        up, down = await transfer(bench, data, back)
        assert hashlib.sha256(up).digest() == hashlib.sha256(data).digest()
        assert hashlib.sha256(down).digest() == hashlib.sha256(back).digest()
        assert spliced > 3
        bench.close()

    run(body)


def test_layers_on_both_sides() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, client=Framed(), remote=Framed())
        plain, back = os.urandom(700_000), os.urandom(300_000)
        up, down = await transfer(bench, bytes(Framed().encode(plain)) + b"\0\0", bytes(Framed().encode(back)))
        assert up.endswith(b"\0\0")
        assert Framed().decode(up) == plain
        assert down.endswith(b"\0\0")
        assert Framed().decode(down) == back
        assert (bench.relay.up, bench.relay.down) == (len(plain), len(back))
        bench.close()

    run(body)


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 5000), max_size=12), layered=st.booleans())
def test_any_chunking_gives_the_same_bytes(sizes: list[int], layered: bool) -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, client=Framed() if layered else None)
        plain = os.urandom(3000 + sum(sizes))
        wire = bytes(Framed().encode(plain)) if layered else plain
        start = 0
        for size in sizes:
            await bench.loop.sock_sendall(bench.client, wire[start : start + size])
            start += size
            await asyncio.sleep(0)
        await bench.loop.sock_sendall(bench.client, wire[start:])
        bench.client.shutdown(socket.SHUT_WR)
        assert await read_all(bench.remote) == plain
        bench.close()

    run(body)


def test_bad_bytes_end_the_flow_for_both() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge, client=Framed())
        await bench.loop.sock_sendall(bench.client, b"\xff\xff")
        assert isinstance(await bench.ended, PeerError)
        with pytest.raises(ConnectionResetError):
            await bench.loop.sock_recv(bench.remote, 10)
        bench.close()

    run(body)


class Opaque:
    """A stream that hides its socket."""

    def __init__(self, inner: SocketStream) -> None:
        self.read, self.write, self.write_eof = inner.read, inner.write, inner.write_eof
        self.unread, self.close = inner.unread, inner.close


def test_streams_without_sockets_are_pumped() -> None:
    async def body(edge: Edge) -> None:
        client, ours = tcp_pair()
        remote, theirs = tcp_pair()
        ended: asyncio.Future[BaseException | None] = edge.loop.create_future()
        made = relay(
            edge, Pipes(), SocketStream(edge, ours, None, b"a"), Opaque(SocketStream(edge, theirs)), ended.set_result
        )
        assert isinstance(made, PumpRelay)
        await edge.loop.sock_sendall(client, b"b" * 100_000)
        client.shutdown(socket.SHUT_WR)
        assert await read_all(remote) == b"a" + b"b" * 100_000
        await edge.loop.sock_sendall(remote, b"back")
        remote.close()
        assert await read_all(client) == b"back"
        assert await ended is None
        assert (made.up, made.down) == (100_001, 4)
        client.close()

    run(body)


def test_close_ends_both_kinds() -> None:
    async def body(edge: Edge) -> None:
        bench = Bench(edge)
        bench.relay.close()
        assert isinstance(await bench.ended, ConnectionAbortedError)
        bench.close()
        client, ours = tcp_pair()
        remote, theirs = tcp_pair()
        ended: asyncio.Future[BaseException | None] = edge.loop.create_future()
        made = relay(edge, Pipes(), Opaque(SocketStream(edge, ours)), SocketStream(edge, theirs), ended.set_result)
        await asyncio.sleep(0.01)
        made.close()
        assert isinstance(await ended, ConnectionAbortedError)
        client.close()
        remote.close()

    run(body)
