"""The dialer on loopback: one address, a race of several, marks, names of datagram peers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config.fields import Duration
from gateway.config.shared import DialerOptions
from gateway.core.address import IP, Address
from gateway.core.errors import DialError
from gateway.kernel.edge import Edge
from gateway.kernel.mark import OWN
from gateway.transport.dial import Dialer, interleave


class Names:
    def __init__(self, **found: list[IP]) -> None:
        self.found = found
        self.asked: list[tuple[str, str]] = []

    async def lookup(self, domain: str, *, server: str = "", strategy: str = "") -> list[IP]:
        self.asked.append((domain, server))
        await asyncio.sleep(0)
        return self.found.get(domain, [])


def run(body: Callable[[Any], Awaitable[None]], **found: list[IP]) -> None:
    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        wiring = SimpleNamespace(edge=edge, resolver=Names(**found), outbounds={}, mark=0, route=None)
        try:
            async with asyncio.timeout(20):
                await body(wiring)
        finally:
            edge.close()

    asyncio.run(main())


def listener(family: int = socket.AF_INET, host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(family)
    sock.bind((host, port))
    sock.listen()
    return sock


def test_connects_and_says_what_failed() -> None:
    async def body(wiring: Any) -> None:
        dialer = Dialer(DialerOptions(), wiring)
        with listener() as server:
            port = server.getsockname()[1]
            stream = await dialer.connect(Address.of("127.0.0.1", port))
            peer, _ = server.accept()
            await stream.write(b"hello")
            assert peer.recv(10) == b"hello"
            peer.close()
            stream.close()
        with pytest.raises(DialError) as caught:
            await dialer.connect(Address.of("127.0.0.1", port))
        assert caught.value.stage == "connect"
        with pytest.raises(DialError) as caught:
            await dialer.connect(Address.of("nowhere.test", port))
        assert caught.value.stage == "resolve"

    run(body)


def test_refused_ipv6_falls_back_to_ipv4_at_once() -> None:
    async def body(wiring: Any) -> None:
        with listener() as server:
            dialer = Dialer(DialerOptions(fallback_delay=Duration(15)), wiring)
            stream = await dialer.connect(Address.of("both.test", server.getsockname()[1]))
            assert stream.sock.family == socket.AF_INET  # type: ignore[attr-defined]
            stream.close()

    run(body, **{"both.test": [IPv6Address("::1"), IPv4Address("127.0.0.1")]})


def test_silent_address_loses_after_the_fallback_delay() -> None:
    async def body(wiring: Any) -> None:
        # A listener whose backlog is full answers no further SYN: the attempt hangs without leaving the host.
        full = socket.socket()
        full.bind(("127.0.0.2", 0))
        full.listen(0)
        port = full.getsockname()[1]
        stuffing = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.2", port))
            stuffing.append(sock)
        with listener(host="127.0.0.1", port=port), full:
            dialer = Dialer(DialerOptions(fallback_delay=Duration(0.05)), wiring)
            stream = await dialer.connect(Address.of("slow.test", port))
            assert stream.sock.getpeername()[0] == "127.0.0.1"  # type: ignore[attr-defined]
            stream.close()
            impatient = Dialer(DialerOptions(connect_timeout=Duration(0.1)), wiring)
            with pytest.raises(DialError, match="no answer"):
                await impatient.connect(Address.of("127.0.0.2", port))
        for sock in stuffing:
            sock.close()

    run(body, **{"slow.test": [IPv4Address("127.0.0.2"), IPv4Address("127.0.0.1")]})


def test_bind_address_and_domain_resolver() -> None:
    async def body(wiring: Any) -> None:
        with listener() as server:
            options = DialerOptions(inet4_bind_address="127.0.0.9", domain_resolver="lan")
            stream = await Dialer(options, wiring).connect(Address.of("me.test", server.getsockname()[1]))
            peer, name = server.accept()
            assert name[0] == "127.0.0.9"
            assert wiring.resolver.asked == [("me.test", "lan")]
            peer.close()
            stream.close()

    run(body, **{"me.test": [IPv4Address("127.0.0.1")]})


def test_a_configured_mark_never_touches_the_gateways_byte() -> None:
    async def body(wiring: Any) -> None:
        assert Dialer(DialerOptions(routing_mark=0x01000007), wiring).mark == 0x01000007  # type: ignore[arg-type]
        wiring.mark = OWN
        assert Dialer(DialerOptions(routing_mark=0x01000007), wiring).mark == OWN | 7  # type: ignore[arg-type]
        wiring.route = SimpleNamespace(default_mark=9, default_interface="", default_domain_resolver="")
        assert Dialer(DialerOptions(), wiring).mark == OWN | 9

    run(body)


def test_datagrams_to_names_wait_bounded_and_answers_carry_the_name() -> None:
    async def body(wiring: Any) -> None:
        echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        echo.bind(("127.0.0.1", 0))
        echo.settimeout(10)
        peer = Address.of("echo.test", echo.getsockname()[1])
        conn = await Dialer(DialerOptions(), wiring).open_packets(peer)
        got: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()
        conn.start(lambda data, address, segment: got.put_nowait((bytes(data), address)))
        for number in range(40):
            conn.send(b"%d" % number, peer)
        await asyncio.sleep(0.01)
        conn.send(b"late", peer)
        received = []
        while not received or received[-1] != b"late":
            data, name = echo.recvfrom(100)
            received.append(data)
        assert received == [b"%d" % number for number in range(16)] + [b"late"]
        echo.sendto(b"answer", name)
        assert await got.get() == (b"answer", peer)
        conn.close()
        conn.send(b"x", peer)
        echo.close()

    run(body, **{"echo.test": [IPv4Address("127.0.0.1")]})


def test_batches_arrive_whole() -> None:
    async def body(wiring: Any) -> None:
        far = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        far.bind(("::1", 0))
        far.settimeout(10)
        peer = Address.of("::1", far.getsockname()[1])
        conn = await Dialer(DialerOptions(), wiring).open_packets(peer)
        sizes: list[int] = []
        done = asyncio.Event()

        def received(data: Any, address: Address, segment: int) -> None:
            assert address == peer
            view = memoryview(data)
            for start in range(0, len(view), segment or len(view)):
                sizes.append(len(view[start : start + (segment or len(view))]))
            if len(sizes) == 51:
                done.set()

        conn.start(received)
        conn.send(bytes(50 * 1200 + 7), peer, 1200)
        got = [far.recvfrom(2000) for _ in range(51)]
        assert [len(data) for data, _ in got] == [1200] * 50 + [7]
        for data, name in got:
            far.sendto(data, name)
        await done.wait()
        assert sizes == [1200] * 50 + [7]
        conn.close()
        far.close()

    run(body)


def test_interleave() -> None:
    found = [ip_address(text) for text in ("2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1")]
    assert [str(ip) for ip in interleave(found)] == ["2001:db8::1", "192.0.2.1", "2001:db8::2", "2001:db8::3"]
