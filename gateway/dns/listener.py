"""Where clients ask: one UDP and one TCP socket a family, on the edge.

A UDP socket is read and answered in batches; what the cache has is answered at once, the rest becomes bounded tasks. A
query over UDP of more than 4096 bytes is cut, and answered as malformed. An answer leaves from the address that was
asked (RFC 2181 section 4.1), also on a wildcard socket.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Coroutine
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import takewhile
from typing import Any, Protocol

from gateway.config.shared import ListenOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import GatewayError
from gateway.core.flow import Flow, Network
from gateway.dns import message
from gateway.dns.ready import Ready
from gateway.kernel.batch import SIZE, SLOTS, Batch
from gateway.kernel.edge import IN
from gateway.kernel.sockopt import UDP_GRO, address_of
from gateway.transport.listen import packet_socket, stream_socket
from gateway.transport.tcp import SocketStream

log = logging.getLogger("gateway.dns")

BATCH = 256
"""Connections accepted in one wake-up."""
ROUNDS = 4
"""Batches of one socket in one wake-up; then others have their turn."""
QUERIES = 2048
"""Questions over UDP that wait for servers; further ones are dropped, and the client asks again."""
CONNECTIONS = 256
"""TCP clients at a time; further ones are closed at once."""
PIPELINED = 32
"""Queries of one TCP client that are at work at a time (RFC 7766 section 6.2.1.1)."""
IDLE = 15.0
"""Seconds that a TCP client may say nothing (RFC 7766 section 6.2.3)."""
CHUNK = 4096
"""Bytes read of a TCP client at a time: about a hundred queries."""
TOGETHER = 16384
"""Bytes of answers that go out in one piece."""
CLIENTS = 4096
"""Peers whose spelling is remembered; at the bound all are forgotten and learned anew."""
BUFFER = 1 << 20
"""Bytes of the receive queue: a burst waits while one batch is answered."""

IP_PKTINFO = 8
Info = tuple[tuple[int, int, bytes], ...]


class Resolver(Protocol):
    """What is asked: ``dns.router.Router``."""

    ready: Ready

    def hit(self, query: bytes, flow: Flow) -> bytes | None: ...

    async def exchange(self, query: bytes, flow: Flow) -> bytes | None: ...


class Listener:
    """Listens on ``port`` of ``hosts`` (IP addresses; the wildcards of both families by default). ``tag`` is what DNS
    rules call it (``inbound``)."""

    def __init__(
        self, resolver: Resolver, wiring: Wiring, port: int = 53, hosts: tuple[str, ...] = ("0.0.0.0", "::"), *,
        tag: str = "dns", tcp: bool = True,
    ) -> None:  # fmt: skip
        self.resolver = resolver
        self._wiring = wiring
        self.port = port
        self._hosts = hosts
        self._tag = tag
        self._tcp = tcp
        self._sockets: list[socket.socket] = []
        self._flows: dict[tuple[Any, ...], Flow] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self.port = port
        self.bound: list[tuple[Network, Address]] = []

    async def start(self) -> None:
        """Bind everything or nothing. Raises OSError."""
        try:
            for host in self._hosts:
                self._bind(host)
        except BaseException:
            await self.close()
            raise

    def _bind(self, host: str) -> None:
        ip = ip_address(host)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        options = ListenOptions(listen=host, listen_port=self.port)
        wild = ip.is_unspecified
        udp = packet_socket(options, self._wiring, family, host, only_v6=True, tune=_tell if wild else None)
        self._sockets.append(udp)
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        with suppress(OSError):
            udp.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 0)  # one query a call
        self.bound.append(("udp", address_of(udp.getsockname())))
        batch = Batch(family, wild)
        self._wiring.edge.add(udp.fileno(), IN, lambda events: self._drain(udp, batch))
        if not self._tcp:
            return
        options = ListenOptions(listen=host, listen_port=udp.getsockname()[1])
        tcp = stream_socket(options, self._wiring, family, host, only_v6=True)
        self._sockets.append(tcp)
        self.bound.append(("tcp", address_of(tcp.getsockname())))
        self._wiring.edge.add(tcp.fileno(), IN, lambda events: self._accept(tcp))

    def _drain(self, sock: socket.socket, batch: Batch) -> None:
        for _ in range(ROUNDS):
            sizes = batch.receive(sock.fileno())
            if sizes:
                self._turn(sock, batch, sizes)
            if len(sizes) < SLOTS:
                return

    def _turn(self, sock: socket.socket, batch: Batch, sizes: list[int]) -> None:
        """Answer what can be answered at once; each run of slots without a gap goes out in one call."""
        data, host, put, fd = batch.data, batch.host, batch.put, sock.fileno()
        ready = self.resolver.ready.get
        now = self.resolver.ready.clock()
        start = at = 0
        for slot, size in enumerate(sizes):
            answer = ready(host(slot), data[at + 2 : at + size], now)
            if answer is not None:
                put(slot, answer, 2)
            elif (whole := self._slow(sock, batch, slot, data[at : at + size])) is not None:
                put(slot, whole)
            else:
                batch.send(fd, start, slot)
                start = slot + 1
            at += SIZE
        batch.send(fd, start, len(sizes))

    def _slow(self, sock: socket.socket, batch: Batch, slot: int, query: bytes) -> bytes | None:
        """The cache's answer, or None: then servers are asked."""
        name = batch.name(slot)
        flow = self._flows.get(name) or self._flow("udp", name, name)
        answer = self.resolver.hit(query, flow)
        if answer is None or len(answer) > SIZE:
            self._miss(sock, query, flow, name, batch.info(slot))
            return None
        return answer

    def _flow(self, network: Network, key: tuple[Any, ...], name: tuple[Any, ...]) -> Flow:
        """One Flow a client. The address that it asked at plays no part in DNS rules."""
        if len(self._flows) >= CLIENTS:
            self._flows.clear()
        host = IPv4Address(0) if "." in name[0] else IPv6Address(0)
        flow = Flow(network, self._tag, "dns", Address.of(name[0], name[1]), Address(host, self.port))
        if network == "udp":
            self._flows[key] = flow
        return flow

    def _miss(self, sock: socket.socket, query: bytes, flow: Flow, name: tuple[Any, ...], info: Info) -> None:
        if len(self._tasks) < QUERIES:
            self._spawn(self._tasks, self._answer(sock, query, flow, name, info))

    async def _answer(
        self, sock: socket.socket, query: bytes, flow: Flow, name: tuple[Any, ...], info: Info
    ) -> None:  # fmt: skip
        answer = await self.resolver.exchange(query, flow)
        if answer is not None and sock.fileno() >= 0:
            _send(sock, answer, name, info)

    def _spawn(self, among: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
        task = self._wiring.edge.loop.create_task(work)
        among.add(task)
        task.add_done_callback(lambda done: self._finished(among, done))

    def _finished(self, among: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        among.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._wiring.edge.loop.call_exception_handler({"message": "dns query failed", "exception": error})

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                sock, name = listener.accept()
            except OSError:
                return
            if len(self._clients) >= CONNECTIONS:
                sock.close()
                continue
            sock.setblocking(False)
            self._spawn(self._clients, self._serve(SocketStream(self._wiring.edge, sock), name))

    async def _serve(self, stream: SocketStream, name: tuple[Any, ...]) -> None:
        """Queries of one TCP client, answered as they are ready (RFC 7766 section 7); what the cache has of those that
        came together goes out together."""
        flow = self._flow("tcp", name, name)
        work: set[asyncio.Task[None]] = set()
        writing = asyncio.Lock()
        data = bytearray()
        try:
            while queries := await _read(stream, data):
                out = b""
                good = [*takewhile(lambda query: len(query) >= message.HEADER, queries)]
                for query in good:
                    hit = self.resolver.hit(query, flow)
                    if hit is not None:
                        out += len(hit).to_bytes(2, "big") + hit
                    if len(out) >= TOGETHER or (out and hit is None and len(work) >= PIPELINED):
                        await _write(stream, out, writing)  # nothing that is ready waits for a server
                        out = b""
                    if hit is not None:
                        continue
                    while len(work) >= PIPELINED:
                        await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                    self._spawn(work, self._reply(stream, query, flow, writing))
                if out:
                    await _write(stream, out, writing)
                if len(good) < len(queries):
                    break
                await asyncio.sleep(0)  # others have their turn, however fast this one asks
            if work:
                await asyncio.wait(work)  # the client may only have closed its half
        except (OSError, TimeoutError, GatewayError):
            pass
        finally:
            for task in work:
                task.cancel()
            stream.close()

    async def _reply(self, stream: SocketStream, query: bytes, flow: Flow, writing: asyncio.Lock) -> None:
        answer = await self.resolver.exchange(query, flow)
        if answer is not None:
            with suppress(OSError, TimeoutError):
                await _write(stream, len(answer).to_bytes(2, "big") + answer, writing)

    async def close(self) -> None:
        """Stop; questions at work get no answer."""
        for sock in self._sockets:
            self._wiring.edge.remove(sock.fileno())
            sock.close()
        self._sockets.clear()
        tasks = (*self._tasks, *self._clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(stream: SocketStream, data: bytearray) -> list[bytes]:
    """Queries that have come, each behind its length on the wire: at least one; none at the end, also inside a query.
    ``data`` holds what is not whole yet. Raises TimeoutError."""
    async with asyncio.timeout(IDLE):
        while not (found := _split(data)):
            part = await stream.read(CHUNK)
            if not part:
                break
            data += part
    return found


def _split(data: bytearray) -> list[bytes]:
    found = []
    at = 0
    while len(data) >= at + 2:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        if end > len(data):
            break
        found.append(bytes(data[at + 2 : end]))
        at = end
    del data[:at]
    return found


async def _write(stream: SocketStream, answers: bytes, writing: asyncio.Lock) -> None:
    """Raises OSError, TimeoutError where the client takes nothing."""
    async with writing, asyncio.timeout(IDLE):
        await stream.write(answers)


def _tell(sock: socket.socket) -> None:
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)


def _send(sock: socket.socket, answer: bytes, name: tuple[Any, ...], info: Info) -> None:
    try:
        sock.sendmsg([answer], info, 0, name)
    except OSError:
        pass  # lost, as on the wire
