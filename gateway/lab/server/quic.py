"""HTTP/3 over QUIC (RFC 9114, RFC 9000) by aioquic: every request is answered with what was seen of it.

``clients`` in the record are the addresses and ports from which its connection has been spoken to so far.
"""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from gateway.lab.server.record import Journal, plain


class Session(QuicConnectionProtocol):  # type: ignore[misc]  # aioquic has no types for strict mode
    """One QUIC connection."""

    journal: Journal
    local: tuple[str, int]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http: H3Connection | None = None
        self._client: Any = ("", 0)
        self._clients: list[list[Any]] = []

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._client = address
        if plain(address) not in self._clients:
            self._clients.append(plain(address))
        super().datagram_received(data, address)

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for found in self._http.handle_event(event):
            if isinstance(found, HeadersReceived):
                self._answer(found)

    def _answer(self, request: HeadersReceived) -> None:
        assert self._http is not None
        headers = {name: value.decode("latin-1") for name, value in request.headers}
        host, path = headers.get(b":authority", ""), headers.get(b":path", "")
        asked = {"host": host, "path": path, "clients": self._clients}
        record = self.journal.add("quic", "request", self._client, self.local, ttl=None, **asked)
        body = json.dumps(record).encode() + b"\n"
        length = str(len(body)).encode()
        self._http.send_headers(request.stream_id, [(b":status", b"200"), (b"content-length", length)])
        self._http.send_data(request.stream_id, body, end_stream=True)
        self.transmit()


async def start(journal: Journal, address: str, port: int, shared: Path) -> asyncio.DatagramTransport:
    """Serve on UDP ``address`` and ``port`` with the lab's certificate."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(shared / "site.pem", shared / "site.key")
    kind = type("SiteSession", (Session,), {"journal": journal, "local": (address, port)})
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    made.bind((address, port))
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicServer(configuration=configuration, create_protocol=kind), sock=made
    )
    return transport
