"""Flows through the router with a scripted engine: real sockets on loopback, real direct outbound."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from gateway.core.address import IP, Address
from gateway.core.contracts import Begun, Wiring
from gateway.core.flow import Findings, Flow, Process
from gateway.core.stream import Buffer
from gateway.kernel.edge import Edge
from gateway.protocol.block import options as block_options
from gateway.protocol.block import outbound as block
from gateway.protocol.direct import options as direct_options
from gateway.protocol.direct import outbound as direct
from gateway.protocol.selector import options as selector_options
from gateway.protocol.selector import outbound as selector
from gateway.route.action import Resolve
from gateway.route.engine import Decision, ResolveRequest, SniffRequest
from gateway.route.limit import Limit
from gateway.route.router import Router
from gateway.route.session import timeout_of
from gateway.transport.tcp import SocketStream

CLIENT = Address.of("192.0.2.7", 40000)
HTTP = b"GET / HTTP/1.1\r\nHost: Example.COM\r\n\r\n"

Script = Callable[[Flow, Findings], Iterator[Any]]


class Walk:
    def __init__(self, steps: Iterator[Any]) -> None:
        self._steps = steps

    def step(self) -> Any:
        return next(self._steps)


class Scripted:
    by_device = False

    def __init__(self, script: Script) -> None:
        self.script = script
        self.walks = 0

    def start(self, flow: Flow, findings: Findings) -> Walk:
        self.walks += 1
        return Walk(self.script(flow, findings))


class Names:
    async def lookup(self, domain: str, *, server: str = "", strategy: str = "") -> list[IP]:
        return [IPv4Address("127.0.0.1")] if domain == "here.test" else []

    def hit(self, query: bytes, flow: Flow) -> bytes | None:
        return b"kept for " + query if query == b"known" else None

    async def exchange(self, query: bytes, flow: Flow) -> bytes | None:
        return b"answer to " + query

    def learned(self, address: IP, client: IP) -> tuple[str, ...]:
        return ("learned.test",)


class Owners:
    def find(self, network: str, source: Address, destination: Address) -> Process | None:
        return Process("/usr/bin/curl") if source.port == 1 else None


class Outbounds(dict[str, Any]):
    default = "direct"

    def leaf(self, tag: str) -> Any:
        return self[tag]


@dataclass
class House:
    """A router and everything it is tied to."""

    edge: Edge
    script: Script
    limit: Limit | None = None
    seen: list[Findings] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.wiring = Wiring(self.edge, None, Names(), Outbounds(), None, Owners())  # type: ignore[arg-type]
        self.engine = Scripted(self.script)
        self.router = Router(self.engine, self.wiring, self.limit)  # type: ignore[arg-type]
        self.wiring.router = self.router
        self.wiring.outbounds.update(  # type: ignore[attr-defined]
            direct=direct.Outbound("direct", direct_options.OutboundOptions(), self.wiring),
            other=direct.Outbound("other", direct_options.OutboundOptions(), self.wiring),
            block=block.Outbound("block", block_options.OutboundOptions(), self.wiring),
            pick=selector.Outbound(
                "pick",
                selector_options.OutboundOptions(outbounds=["direct", "block"], interrupt_exist_connections=True),
                self.wiring,
            ),
        )

    def client(self, destination: Address, *, port: int = 40000, accepted: Any = None) -> socket.socket:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        flow = Flow("tcp", "in", "tproxy", Address(CLIENT.host, port), destination)
        self.router.route_stream(flow, SocketStream(self.edge, far), accepted)
        return near


def run(body: Callable[[House], Awaitable[None]], script: Script, limit: Limit | None = None) -> None:
    async def main() -> None:
        edge = Edge(asyncio.get_running_loop())
        house = House(edge, script, limit)
        try:
            async with asyncio.timeout(30):
                await body(house)
        finally:
            await house.router.close()
            edge.close()

    asyncio.run(main())


def to(tag: str, **more: Any) -> Script:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("route", tag, 0, **more)

    return script


async def serve(answer: bytes = b"pong:") -> tuple[asyncio.Server, Address]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read(1000)
        writer.write(answer + data)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    return server, Address.of(*server.sockets[0].getsockname()[:2])


async def ask(sock: socket.socket, data: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, data)
    return await loop.sock_recv(sock, 1000)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def test_a_stream_is_dialled_listed_and_closed() -> None:
    async def body(house: House) -> None:
        server, address = await serve()
        client = house.client(address)
        assert await ask(client, b"ping") == b"pong:ping"
        (running,) = house.router.flows()
        assert (running.chain, running.up, running.down) == (("direct",), 4, 9)
        assert (running.destinations, running.name, running.rule) == ((address,), "learned.test", 0)
        assert 0 <= asyncio.get_running_loop().time() - running.since < 60
        assert house.router.close_flows(lambda one: one.flow.destination == address) == 1
        assert house.router.flows() == []
        assert await asyncio.get_running_loop().sock_recv(client, 10) == b""
        client.close()
        server.close()

    run(body, to("direct"))


def test_sniff_learn_process_and_resolve_reach_the_engine() -> None:
    seen: list[tuple[Flow, Findings]] = []

    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        assert findings.learned == ("learned.test",)
        yield SniffRequest(frozenset({"tls", "http"}), 10.0)
        yield ResolveRequest("here.test", Resolve())
        seen.append((flow, findings))
        yield Decision("route", "direct", 3, destination=Address("here.test", flow.destination.port))

    async def body(house: House) -> None:
        server, address = await serve()
        client = house.client(Address.of("203.0.113.1", address.port), port=1)
        assert (await ask(client, HTTP)).startswith(b"pong:GET / HTTP")
        ((flow, findings),) = seen
        assert (findings.protocol, findings.domain) == ("http", "example.com")
        assert findings.addresses == (IPv4Address("127.0.0.1"),)
        assert flow.process == Process("/usr/bin/curl")
        client.close()
        server.close()

    run(body, script)


@pytest.mark.parametrize("tag", ["direct", "pick", "block"])
@pytest.mark.parametrize("network", ["tcp", "udp"])
def test_what_becomes_of_a_flow_is_told_before_it_is_dialled(network: str, tag: str) -> None:
    """``pick`` is a group: its way leads over a task."""
    told: list[str] = []

    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield SniffRequest(frozenset({"http", "quic"}), 10.0)
        yield Decision("route", tag, 3) if tag != "block" else Decision("reject", rule=3)

    async def body(house: House) -> None:
        def decided(flow: Flow, findings: Findings, decision: Decision) -> None:
            told.append(f"{findings.domain} {decision.rule} {decision.outbound}")

        house.router.decided = decided
        for name in ("begin", "connect", "open_packets"):
            work = getattr(house.wiring.outbounds["direct"], name)
            setattr(house.wiring.outbounds["direct"], name, lambda *a, work=work: told.append("dial") or work(*a))
        wanted = ["example.com 3 " + ("" if tag == "block" else tag)]
        if network == "tcp":
            server, address = await serve()
            client = house.client(address)
            await asyncio.get_running_loop().sock_sendall(client, HTTP)
            await until(lambda: told[-1:] == (wanted if tag == "block" else ["dial"]))
            client.close()
            server.close()
        else:
            sock, address = echo_socket()
            talk = Talk(house)
            hello = QuicConnection(configuration=QuicConfiguration(server_name="example.com"))
            hello.connect(("192.0.2.1", 443), 0.0)
            for data, _ in hello.datagrams_to_send(0.0):
                talk.send(data, address)
            await until(lambda: told[-1:] == (wanted if tag == "block" else ["dial"]))
            sock.close()
        assert list(dict.fromkeys(told)) == wanted + ["dial"] * (tag != "block")

    run(body, script)


@pytest.mark.parametrize(("timeout", "certain"), [(0.05, False), (3600.0, True)])
def test_a_silent_client_is_waited_for_no_longer_than_needed(timeout: float, certain: bool) -> None:
    """Than the rule says, and hardly at all where no sniff could change where the flow goes."""

    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield SniffRequest(frozenset({"tls", "http"}), timeout)
        yield Decision("route", "direct", 0)

    async def body(house: House) -> None:
        async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hello")
            writer.close()

        house.router.certain = lambda flow, findings: certain
        server = await asyncio.start_server(hello, "127.0.0.1", 0)
        client = house.client(Address.of(*server.sockets[0].getsockname()[:2]))
        assert await asyncio.get_running_loop().sock_recv(client, 100) == b"220 hello"
        client.close()
        server.close()

    run(body, script)


class Far(socket.socket):
    """The first ``send`` takes so many bytes, -1: none, as before it is connected. Each is noted."""

    def __init__(self, sock: socket.socket, room: int | None, noted: list[str]) -> None:
        super().__init__(fileno=sock.detach())
        self.setblocking(False)
        self.room, self.noted = room, noted

    def send(self, data: Any, flags: int = 0) -> int:
        self.noted.append("send")
        room, self.room = self.room, None
        if room == -1:
            raise BlockingIOError
        return super().send(memoryview(data)[:room], flags)


class Slow:
    """An outbound whose socket is one of a pair, and takes ``sent`` of the first bytes (-1: not connected yet)."""

    tag = type = "slow"
    networks = frozenset({"tcp", "udp"})

    def __init__(self, sent: int | None = None, patience: float = 0.0, *, full: bool = False) -> None:
        self.noted: list[str] = []
        self.near, far = socket.socketpair()
        self.near.setblocking(False)
        self.far = Far(far, sent, self.noted)
        self.patience = patience
        with suppress(BlockingIOError):
            while full:
                socket.socket.send(self.far, bytes(65536))

    def begin(self, destination: Address, speaking: bool) -> Begun:
        self.noted.append("speaking" if speaking else "silent")
        return Begun(self.far, self.patience)


def sniffed(tag: str) -> Script:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield SniffRequest(frozenset({"tls", "http"}), 3600.0)
        yield Decision("route", tag, 0)

    return script


@pytest.mark.parametrize("sent", [-1, 1, 5, len(HTTP)])
def test_the_first_bytes_arrive_once_however_far_the_connection_is(sent: int) -> None:
    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        slow = house.wiring.outbounds["slow"] = Slow(sent)  # type: ignore[index]
        client = house.client(Address.of("203.0.113.1", 80))
        for part in (HTTP[:7], HTTP[7:20], HTTP[20:]):
            await loop.sock_sendall(client, part)
            await asyncio.sleep(0)
        client.shutdown(socket.SHUT_WR)
        got = b""
        while more := await loop.sock_recv(slow.near, 1000):
            got += more
        assert got == HTTP, "then the end of stream"
        (running,) = house.router.flows()
        assert running.up == len(HTTP)
        await loop.sock_sendall(slow.near, b"answer")
        assert await loop.sock_recv(client, 100) == b"answer"
        slow.near.close()
        assert await loop.sock_recv(client, 100) == b""
        await until(lambda: not house.router.flows())
        client.close()

    run(body, sniffed("slow"))


@pytest.mark.parametrize("end", ["patience", "closed", "router"])
def test_a_connection_that_is_never_made_is_let_go(end: str) -> None:
    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        slow = house.wiring.outbounds["slow"] = Slow(-1, 0.05 if end == "patience" else 0.0, full=True)  # type: ignore[index]
        client = house.client(Address.of("203.0.113.1", 80))
        await loop.sock_sendall(client, HTTP)
        await until(lambda: not house.router.flows() or house.router.flows()[0].chain == ("slow",))
        if end == "closed":
            assert house.router.close_flows(lambda running: True) == 1
        elif end == "router":
            await house.router.close()
        await until(lambda: not house.router.flows())
        assert slow.far.fileno() < 0
        assert client.recv(10) == b""
        client.close()
        slow.near.close()

    run(body, sniffed("slow"))


def test_flows_of_one_turn_are_dialled_before_any_is_sent_to() -> None:
    """The first one wakes the server for all."""

    async def body(house: House) -> None:
        slow, other = Slow(), Slow()
        other.noted = other.far.noted = slow.noted
        outbounds = house.wiring.outbounds
        outbounds["slow"], outbounds["other"] = slow, other  # type: ignore[index]
        pairs = [socket.socketpair() for _ in range(2)]
        for port, (client, ours) in enumerate(pairs, 80):
            client.send(HTTP)
            ours.setblocking(False)
            flow = Flow("tcp", "in", "tproxy", CLIENT, Address.of("203.0.113.1", port))
            house.router.route_stream(flow, SocketStream(house.edge, ours))
        for far in (slow, other):
            assert await asyncio.get_running_loop().sock_recv(far.near, 1000) == HTTP
        assert slow.noted == ["speaking", "speaking", "send", "send"]
        for client, _ in pairs:
            client.close()
        slow.near.close()
        other.near.close()
        await until(lambda: not house.router.flows())

    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield SniffRequest(frozenset({"tls", "http"}), 3600.0)
        yield Decision("route", "slow" if flow.destination.port == 80 else "other", 0)

    run(body, script)


def test_a_flow_that_ends_between_dial_and_first_bytes_says_nothing() -> None:
    async def body(house: House) -> None:
        slow = house.wiring.outbounds["slow"] = Slow()  # type: ignore[index]
        client, ours = socket.socketpair()
        client.send(HTTP)
        ours.setblocking(False)
        flow = Flow("tcp", "in", "tproxy", CLIENT, Address.of("203.0.113.1", 80))
        house.router.route_stream(flow, SocketStream(house.edge, ours))
        assert house.router.close_flows(lambda running: True) == 1
        assert await asyncio.get_running_loop().sock_recv(slow.near, 10) == b"", "closed without a word"
        assert slow.noted == ["speaking"]
        assert not house.router.flows()
        client.close()
        slow.near.close()

    run(body, sniffed("slow"))


def test_a_silent_client_that_leaves_is_forgotten() -> None:
    async def body(house: House) -> None:
        clients = [house.client(Address.of("203.0.113.1", 80), port=port) for port in (2, 3)]
        assert len(house.router.flows()) == 2
        house.router.close_flows(lambda running: running.flow.source.port == 2)
        assert [running.flow.source.port for running in house.router.flows()] == [3]
        slow = house.wiring.outbounds["slow"] = Slow(-1)  # type: ignore[index]
        clients[1].shutdown(socket.SHUT_WR)
        assert await asyncio.get_running_loop().sock_recv(slow.near, 10) == b"", "the silence is passed on"
        slow.near.close()
        await until(lambda: not house.router.flows())
        for client in clients:
            client.close()

    run(body, sniffed("slow"))


def test_a_flow_that_lasts_learns_of_a_dead_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket is born without keep-alive, like those of the short flows."""
    monkeypatch.setattr("gateway.route.router.LASTING", 0.05)

    async def body(house: House) -> None:
        server, address = await serve()
        client = house.client(address)
        await ask(client, b"hello")
        (running,) = house.router.flows()
        remote = running.relay.remote.sock  # type: ignore[attr-defined]
        assert not remote.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await until(lambda: remote.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
        assert remote.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 600
        client.close()
        server.close()

    run(body, to("direct"))


@pytest.mark.parametrize("case", ["reject", "block", "dial", "missing"])
def test_what_cannot_go_on_is_refused_once(case: str) -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        if case == "reject":
            yield Decision("reject", rule=2)
        yield Decision("route", {"block": "block", "dial": "direct"}.get(case, "none"), 0)

    async def body(house: House) -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            port = gone.getsockname()[1]
        told: list[bool] = []

        async def accepted(done: bool) -> None:
            told.append(done)

        client = house.client(Address.of("127.0.0.1", port), accepted=accepted)
        assert await asyncio.get_running_loop().sock_recv(client, 10) == b""
        assert told == [False]
        await until(lambda: not house.router.flows())
        # A plain TCP client, captured, sees a reset.
        with socket.create_server(("127.0.0.1", 0)) as door:
            plain = socket.create_connection(door.getsockname())
            ours, _ = door.accept()
        plain.setblocking(False)
        ours.setblocking(False)
        house.router.route_stream(
            Flow("tcp", "in", "tproxy", CLIENT, Address.of("127.0.0.1", port)), SocketStream(house.edge, ours)
        )
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(plain, 10)
        plain.close()
        client.close()

    run(body, script)


@pytest.mark.parametrize("no_drop", [False, True])
def test_a_flood_of_refused_flows_is_not_answered(no_drop: bool) -> None:
    """TCP and UDP count together, until other rules come."""

    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("reject", rule=flow.destination.port, no_drop=no_drop)

    async def body(house: House) -> None:
        told: list[bool] = []
        clients: list[socket.socket] = []

        async def accepted(done: bool) -> None:
            told.append(done)

        def come(port: int) -> None:
            clients.append(house.client(Address.of("203.0.113.1", port), accepted=accepted))

        async def refused(count: int) -> None:
            await until(lambda: len(told) == count)

        talk = Talk(house)
        for host in range(10):
            talk.send(b"no", Address.of(f"203.0.113.{host}", 9))
        (session,) = house.router.sessions.running()
        await until(lambda: all(route.task is None for route in session.routes.values()))
        for _ in range(40):
            come(9)
        await refused(40)
        come(9)
        come(10)  # another rule
        await refused(42 if no_drop else 41)
        streams = [one for one in house.router.flows() if one.flow.network == "tcp"]
        assert [one.flow.destination.port for one in streams] == ([] if no_drop else [9])
        house.router.engine = Scripted(script)  # type: ignore[assignment]
        come(9)
        await refused(43 if no_drop else 42)
        for client in clients:
            client.close()

    run(body, script)


def test_hijacked_dns_over_tcp() -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("hijack-dns", rule=0)

    async def body(house: House) -> None:
        client = house.client(Address.of("203.0.113.53", 53))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, b"\0\1a\0")
        await asyncio.sleep(0.01)
        await loop.sock_sendall(client, b"\2bc")
        data = b""
        while len(data) < 2 + 11 + 2 + 12:
            data += await loop.sock_recv(client, 100)
        assert data == b"\0\x0banswer to a\0\x0canswer to bc"
        client.close()

    run(body, script)


def test_selector_changes_and_interrupts() -> None:
    async def body(house: House) -> None:
        server, address = await serve()
        pick = house.wiring.outbounds["pick"]
        changes: list[str] = []
        pick.watch(lambda: changes.append(pick.now))
        client = house.client(address)
        assert await ask(client, b"ping") == b"pong:ping"
        assert house.router.flows()[0].chain == ("pick", "direct")
        with pytest.raises(KeyError):
            pick.select("other")
        pick.select("block")
        assert changes == ["block"]
        assert await asyncio.get_running_loop().sock_recv(client, 10) == b""
        refused = house.client(address)
        assert await asyncio.get_running_loop().sock_recv(refused, 10) == b""
        client.close()
        refused.close()
        server.close()

    run(body, to("pick"))


def test_a_device_at_its_cap_is_refused() -> None:
    async def body(house: House) -> None:
        server, address = await serve()
        first = house.client(address)
        assert await ask(first, b"1") == b"pong:1"
        second = house.client(address)
        assert await asyncio.get_running_loop().sock_recv(second, 10) == b""
        first.close()
        await until(lambda: not house.router.flows())
        third = house.client(address)
        assert await ask(third, b"3") == b"pong:3"
        second.close()
        third.close()
        server.close()

    run(body, to("direct"), Limit(lambda: 0.0, tcp=1))


def echo_socket() -> tuple[socket.socket, Address]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock, Address.of(*sock.getsockname())


class Talk:
    """What a UDP client sent and got back."""

    def __init__(self, house: House, source: Address = CLIENT) -> None:
        self.house = house
        self.source = source
        self.got: asyncio.Queue[tuple[bytes, Address]] = asyncio.Queue()

    def send(self, data: bytes, destination: Address) -> None:
        def reply(data: Buffer, peer: Address, segment: int) -> None:
            self.got.put_nowait((bytes(data), peer))

        self.house.router.route_packet(Flow("udp", "in", "tproxy", self.source, destination), data, reply)


def test_one_source_has_one_port_for_all_peers_and_anybody_may_answer() -> None:
    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        (one, a), (two, b), (stranger, c) = echo_socket(), echo_socket(), echo_socket()
        talk = Talk(house)
        for number in range(5):
            talk.send(b"%d" % number, a)
        received = [await loop.sock_recvfrom(one, 100) for _ in range(5)]
        assert [data for data, _ in received] == [b"0", b"1", b"2", b"3", b"4"]
        talk.send(b"to two", b)
        _, name = await loop.sock_recvfrom(two, 100)
        assert {peer for _, peer in received} == {name}
        await loop.sock_sendto(stranger, b"hello", name)
        assert await talk.got.get() == (b"hello", c)
        other = Talk(house, Address(CLIENT.host, 40001))
        other.send(b"x", a)
        assert (await loop.sock_recvfrom(one, 100))[1] != name
        assert len(house.router.flows()) == 2
        house.router.close_packets("in", CLIENT)
        assert len(house.router.flows()) == 1
        assert house.engine.walks == 3
        for sock in (one, two, stranger):
            sock.close()

    run(body, to("direct"))


def test_a_mapping_that_has_ended_is_dialled_anew() -> None:
    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        sock, address = echo_socket()
        talk = Talk(house)
        talk.send(b"1", address)
        first = (await loop.sock_recvfrom(sock, 100))[1]
        (session,) = house.router.sessions.running()
        session.links["direct", None].conn.close()
        talk.send(b"2", address)
        data, second = await loop.sock_recvfrom(sock, 100)
        assert data == b"2"
        assert second != first
        assert house.engine.walks == 2
        session.links["direct", None].conn.close()
        session.expire(0.0)
        assert not session.links, "not kept until it is idle"
        assert not session.routes
        sock.close()

    run(body, to("direct"))


def test_destinations_of_one_source_may_take_different_outbounds() -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("route", "direct" if flow.destination.port % 2 else "other", 0)

    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        socks: dict[int, tuple[socket.socket, Address]] = {}
        while len(socks) < 2:
            sock, address = echo_socket()
            if address.port % 2 in socks:
                sock.close()
            else:
                socks[address.port % 2] = (sock, address)
        talk = Talk(house)
        names = []
        for sock, address in socks.values():
            talk.send(b"x", address)
            names.append((await loop.sock_recvfrom(sock, 10))[1])
        assert names[0] != names[1]
        (running,) = house.router.flows()
        assert set(running.chain) == {"direct", "other"}
        assert running.destinations == tuple(address for _, address in socks.values())
        assert (running.name, running.rule) == ("learned.test", 0)
        for sock, _ in socks.values():
            sock.close()

    run(body, script)


def test_an_override_is_hidden_from_the_client() -> None:
    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        sock, address = echo_socket()
        house.engine.script = to("direct", destination=address)
        asked = Address.of("203.0.113.9", 9999)
        talk = Talk(house)
        talk.send(b"x", asked)
        _, name = await loop.sock_recvfrom(sock, 10)
        await loop.sock_sendto(sock, b"y", name)
        assert await talk.got.get() == (b"y", asked)
        sock.close()

    run(body, to("direct"))


def test_rejected_and_hijacked_datagrams() -> None:
    def script(flow: Flow, findings: Findings) -> Iterator[Any]:
        yield Decision("hijack-dns" if flow.destination.port == 53 else "reject", rule=0)

    async def body(house: House) -> None:
        talk = Talk(house)
        dns = Address.of("203.0.113.53", 53)
        for number in range(3):
            talk.send(b"q%d" % number, dns)
            talk.send(b"no", Address.of("203.0.113.1", 9))
        talk.send(b"known", dns)
        answers = {await talk.got.get() for _ in range(4)}
        asked = {(b"answer to q%d" % number, dns) for number in range(3)}
        assert answers == asked | {(b"kept for known", dns)}
        assert house.router.flows()[0].up == 0

    run(body, script)


def test_idle_mappings_end_by_protocol_and_by_rule() -> None:
    decision = Decision("route", "direct")
    assert timeout_of(decision, "", 9999, 300.0) == 300.0
    assert timeout_of(decision, "", 53, 300.0) == 10.0
    assert timeout_of(decision, "quic", 9999, 300.0) == 30.0
    assert timeout_of(Decision("route", "direct", udp_timeout=7.0), "dns", 53, 300.0) == 7.0

    async def body(house: House) -> None:
        loop = asyncio.get_running_loop()
        sock, address = echo_socket()
        talk = Talk(house)
        talk.send(b"x", address)
        await loop.sock_recvfrom(sock, 10)
        (session,) = house.router.sessions.running()
        start = session.used
        assert not session.expire(start + 299)
        assert session.expire(start + 301)
        assert session.links == {}
        sock.close()

    run(body, to("direct"))
