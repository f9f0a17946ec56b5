"""HTTP/1.1 and HTTPS that answer with what they saw; h11 is the parser (RFC 9112).

| path | answer |
| --- | --- |
| `/bytes/N` | N zero bytes, N at most 16 GiB |
| `/stream/N` | one line each 100 ms for N seconds, N at most 3600 |
| any other | the record as JSON; a request body is counted and thrown away |
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import h11

from gateway.lab.server.record import Journal, listener, syn_ttl

BLOCK = bytes(256 * 1024)
IDLE = 120.0  # seconds without a request until the connection is closed


def context(shared: Path) -> ssl.SSLContext:
    """A TLS server with the lab's certificate that remembers the server name it was asked for."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(shared / "site.pem", shared / "site.key")
    made.set_alpn_protocols(["http/1.1"])

    def remember(side: Any, name: str | None, _: ssl.SSLContext) -> None:
        side.asked_name = name

    made.sni_callback = remember
    return made


class Connection:
    """One client; requests one after the other."""

    def __init__(self, journal: Journal, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._journal = journal
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER)
        tls = writer.get_extra_info("ssl_object")
        self._service = "http" if tls is None else "https"
        raw: socket.socket = writer.get_extra_info("socket")
        self._client, self._local = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        self._more: dict[str, Any] = {"ttl": syn_ttl(raw), "sni": getattr(tls, "asked_name", None)}
        journal.add(self._service, "open", self._client, self._local, **self._more)

    async def serve(self) -> None:
        """Answer until the client or an error ends it."""
        try:
            while await self._one():
                self._http.start_next_cycle()
        except (h11.RemoteProtocolError, h11.LocalProtocolError, OSError, TimeoutError, EOFError):
            pass
        finally:
            self._writer.close()

    async def _event(self) -> Any:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            async with asyncio.timeout(IDLE):
                self._http.receive_data(await self._reader.read(256 * 1024))
        return event

    async def _one(self) -> bool:
        request = await self._event()
        if not isinstance(request, h11.Request):
            return False
        received = 0
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return False
            received += len(event.data)
        headers = {bytes(name): bytes(value).decode("latin-1") for name, value in request.headers}
        path = bytes(request.target).decode("latin-1")
        seen = {**self._more, "host": headers.get(b"host", ""), "path": path, "received": received}
        record = self._journal.add(self._service, "request", self._client, self._local, **seen)
        await self._answer(path, record)
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _answer(self, path: str, record: dict[str, Any]) -> None:
        words = path.strip("/").split("/")
        number = int(words[1]) if len(words) == 2 and words[1].isdecimal() and len(words[1]) < 12 else None
        if words[0] == "bytes" and number is not None:
            size = min(number, 1 << 34)
            self._head(f"Content-Length: {size}")
            for start in range(0, size, len(BLOCK)):
                await self._send(h11.Data(data=BLOCK[: size - start]))
        elif words[0] == "stream" and number is not None:
            self._head("Transfer-Encoding: chunked")
            for beat in range(min(number, 3600) * 10):
                await self._send(h11.Data(data=f"{beat}\n".encode()))
                await asyncio.sleep(0.1)
        else:
            body = json.dumps(record).encode() + b"\n"
            self._head(f"Content-Length: {len(body)}")
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    def _head(self, length: str) -> None:
        name, _, value = length.partition(": ")
        headers = [("Content-Type", "application/json"), (name, value)]
        self._write(h11.Response(status_code=200, headers=headers, reason="OK"))

    def _write(self, event: Any) -> None:
        if data := self._http.send(event):
            self._writer.write(data)

    async def _send(self, event: Any) -> None:
        self._write(event)
        await self._writer.drain()


async def start(journal: Journal, address: str, port: int, tls: ssl.SSLContext | None) -> asyncio.Server:
    """Listen on ``address`` and ``port``."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Connection(journal, reader, writer).serve()

    return await asyncio.start_server(accept, sock=listener(address, port), ssl=tls)
