"""DNS server ``tls``: DNS over TLS (RFC 7858), many queries at a time on few connections that are kept; answers come in
any order (RFC 7766 section 6.2.1.1). Queries are not padded, as sing-box does not."""

from __future__ import annotations

import asyncio
import secrets

from msgspec import field

from gateway.config.shared import DialerOptions
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import GatewayError
from gateway.core.stream import Stream
from gateway.dns import message
from gateway.dns.pool import Line, Multiplexed, Pool
from gateway.tls.options import OutboundTLSOptions
from gateway.transport.dial import Dialer
from gateway.transport.remote import client, secure


class Options(DialerOptions, kw_only=True):
    """``tls`` counts whatever its ``enabled`` says."""

    server: str
    server_port: int = 853
    tls: OutboundTLSOptions = field(default_factory=OutboundTLSOptions)


class Server:
    """``exchange`` raises DialError, PeerError or OSError; the caller bounds its time. The constructor raises
    ConfigError for a certificate that cannot be read."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._address = Address.of(options.server, options.server_port or 853)
        self._wiring = wiring
        self._dialer = Dialer(options, wiring)
        self._client = client(options.tls, options.server, wiring.directory)
        self._pool = Pool(self._dial)

    async def _dial(self) -> Line:
        stream = await self._dialer.connect(self._address)
        return Pipeline((await secure(self._wiring.edge, stream, self._client))[0], str(self._address))

    async def exchange(self, query: bytes) -> bytes:
        return await self._pool.ask(query)

    async def close(self) -> None:
        self._pool.close()


class Pipeline(Multiplexed):
    """Two bytes of length stand before each message (RFC 1035 section 4.2.2)."""

    room = 4096

    def __init__(self, stream: Stream, server: str) -> None:
        super().__init__(stream, server)
        self._waiting: dict[int, tuple[bytes, asyncio.Future[bytes]]] = {}

    async def _exchange(self, query: bytes) -> bytes:
        ident = secrets.randbelow(65536)
        while ident in self._waiting:
            ident = secrets.randbelow(65536)
        future: asyncio.Future[bytes] = self._promise()
        self._waiting[ident] = (query, future)
        try:
            await self._write(lambda: len(query).to_bytes(2, "big") + ident.to_bytes(2, "big") + query[2:])
            return query[:2] + (await future)[2:]
        finally:
            del self._waiting[ident]

    async def _read(self) -> None:
        said = "closed the connection"
        kept = b""
        try:
            while data := await self._stream.read():
                self.heard += 1
                kept += data
                while len(kept) >= 2 and len(kept) >= (end := 2 + int.from_bytes(kept[:2], "big")):
                    self._answer(kept[2:end])
                    kept = kept[end:]
        except (OSError, GatewayError) as error:
            said = str(error)
        self._end(said)

    def _answer(self, answer: bytes) -> None:
        query, future = self._waiting.get(int.from_bytes(answer[:2], "big"), (b"", None))
        if future is not None and not future.done() and message.answers(answer, query):
            future.set_result(answer)
