"""Datagrams in a stream: cut anywhere, kept within bounds, ended by what is wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from gateway.core.address import Address
from gateway.kernel.edge import Edge
from gateway.protocol.trojan.codec import Datagrams
from gateway.transport import carried
from gateway.transport.carried import Packets
from gateway.transport.tcp import SocketStream

PEER, OTHER = Address.of("192.0.2.1", 53), Address.of("a.test", 443)
FRAMING = Datagrams()


def run(body: Callable[[Packets, SocketStream], Awaitable[None]]) -> None:
    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        packets, stream = Packets(edge, SocketStream(edge, near), FRAMING), SocketStream(edge, far)
        try:
            async with asyncio.timeout(60):
                await body(packets, stream)
        finally:
            packets.close()
            stream.close()
            edge.close()

    asyncio.run(main())


async def until(true: Callable[[], bool]) -> None:
    for _ in iter(true, True):
        await asyncio.sleep(0.001)


def test_both_ways() -> None:
    async def body(packets: Packets, stream: SocketStream) -> None:
        found: list[tuple[bytes, Address, int]] = []
        early = [(bytes((number,)), PEER if number % 2 else OTHER) for number in range(carried.EARLY + 5)]
        wire = b"".join(FRAMING.wrap(data, peer) for data, peer in early)
        for at in range(0, len(wire), 7):
            await stream.write(wire[at : at + 7])
            await asyncio.sleep(0)
        await until(lambda: len(packets._early) == carried.EARLY)
        await asyncio.sleep(0.02)
        packets.start(lambda data, peer, segment: found.append((bytes(data), peer, segment)))
        assert found == [(data, peer, 0) for data, peer in early[: carried.EARLY]]
        await stream.write(FRAMING.wrap(b"late", PEER))
        await until(lambda: found[-1] == (b"late", PEER, 0))

        packets.send(b"abcdefgh", PEER, 3)
        packets.send(b"", OTHER)
        packets.send(bytes(70000), OTHER)
        wanted = b"".join(FRAMING.wrap(*one) for one in ((b"abc", PEER), (b"def", PEER), (b"gh", PEER), (b"", OTHER)))
        got = b""
        while len(got) < len(wanted):
            got += await stream.read()
        assert got == wanted

    run(body)


def test_a_stream_that_takes_nothing() -> None:
    async def body(packets: Packets, stream: SocketStream) -> None:
        for _ in range(2000):
            packets.send(bytes(1000), PEER)
            if not _ % 100:
                await asyncio.sleep(0)
        assert packets._size <= carried.WAITING
        assert sum(map(len, packets._waiting)) == packets._size
        packets.close()
        assert packets.closed
        packets.send(b"x", PEER)
        assert not packets._waiting

    run(body)


@pytest.mark.parametrize("wire", [b"\x09", b"\x01\xc0\x00\x02\x01\x00\x35\x00\x01\n\nx", b""])
def test_it_ends_with_the_stream_and_with_what_is_wrong(wire: bytes) -> None:
    async def body(packets: Packets, stream: SocketStream) -> None:
        await stream.write(FRAMING.wrap(b"first", PEER) + wire)
        if not wire:
            await stream.write_eof()
        await until(lambda: packets.closed)
        found: list[bytes] = []
        packets.start(lambda data, peer, segment: found.append(bytes(data)))
        assert found == [b"first"]
        assert await stream.read() == b""

    run(body)
