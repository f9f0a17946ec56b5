"""DNS server ``udp``: many queries over one socket, told apart by random ids; a truncated answer is asked for again
over TCP.

Against forged answers (RFC 5452) an answer counts only if id, peer and question are those of a query that waits, and
the socket, so the port, is a new one every ``QUERIES`` queries.
"""

from __future__ import annotations

import asyncio
import secrets

from gateway.config.shared import DialerOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError
from gateway.core.stream import Buffer, PacketConn
from gateway.dns import message
from gateway.dns.server import tcp
from gateway.transport.dial import Dialer

WAITS = (1.0, 2.0, 4.0)
"""Seconds that each try waits; then the server counts as dead."""
WAITING = 4096
"""Queries that wait on one socket; further ones fail at once."""
QUERIES = 256

Options = tcp.Options


class Server:
    """``exchange`` raises DialError, PeerError or OSError."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._upstream = Upstream(Address.of(options.server, options.server_port), options, wiring)

    async def exchange(self, query: bytes) -> bytes:
        return await self._upstream.exchange(query)

    async def close(self) -> None:
        self._upstream.close()


class Upstream:
    """One name server at ``address``; ``local`` and ``dhcp`` have several."""

    def __init__(self, address: Address, options: DialerOptions, wiring: Wiring) -> None:
        self.address = address
        self._detour = bool(options.detour)
        self._dialer = Dialer(options, wiring)
        self._port: _Port | None = None
        self._opening = asyncio.Lock()

    async def exchange(self, query: bytes) -> bytes:
        """Raises DialError after the last try, PeerError, OSError."""
        message.question(query)
        for wait in WAITS:
            port = await self._open()
            try:
                async with asyncio.timeout(wait):
                    answer = await port.ask(query)
            except TimeoutError:
                self._retire(port)
                continue
            if message.flags(answer) & message.TC:
                return await tcp.ask(self._dialer, self.address, query)
            return answer
        raise DialError(f"{self.address}: no answer to {len(WAITS)} queries")

    async def _open(self) -> _Port:
        async with self._opening:
            port = self._port
            if port is None or port.used >= QUERIES:
                if port is not None:
                    self._retire(port)
                address = self.address
                if address.domain is not None and not self._detour:
                    address = Address((await self._dialer.resolve(address.domain))[0], address.port)
                port = self._port = _Port(await self._dialer.open_packets(address), address)
            return port

    def _retire(self, port: _Port) -> None:
        if self._port is port:
            self._port = None
        port.retire()

    def close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None


class _Port:
    """One socket and the queries that wait on it."""

    def __init__(self, conn: PacketConn, address: Address) -> None:
        self._conn = conn
        self._address = address
        self._waiting: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}
        self._retired = False
        self.used = 0
        conn.start(self._received)

    async def ask(self, query: bytes) -> bytes:
        if len(self._waiting) >= WAITING:
            raise DialError(f"{self._address}: {WAITING} queries wait already")
        self.used += 1
        ident = secrets.randbelow(65536)
        while ident in self._waiting:
            ident = secrets.randbelow(65536)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = (query, future)
        try:
            self._conn.send(ident.to_bytes(2, "big") + query[2:], self._address)
            return query[:2] + (await future)[2:]
        finally:
            self._waiting.pop(ident, None)
            if self._retired and not self._waiting:
                self._conn.close()

    def _received(self, data: Buffer, peer: Address, segment: int) -> None:
        # Behind a detour a name's address may be told instead of the name.
        if peer != self._address and self._address.domain is None:
            return
        raw = bytes(data)
        for start in range(0, len(raw), segment or max(len(raw), 1)):
            self._answer(raw[start : start + segment] if segment else raw)

    def _answer(self, answer: bytes) -> None:
        query, future = self._waiting.get(int.from_bytes(answer[:2], "big"), (b"", None))
        if future is not None and not future.done() and message.answers(answer, query):
            future.set_result(answer)

    def retire(self) -> None:
        """No new queries; closes when the last one is answered."""
        self._retired = True
        if not self._waiting:
            self._conn.close()

    def close(self) -> None:
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(DialError(f"{self._address}: closed"))
        self._conn.close()
