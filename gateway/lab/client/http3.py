"""``python -m gateway.lab.client.http3 URL --connect ADDRESS --ca FILE``: one HTTP/3 request, its body on stdout."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ConnectionTerminated, QuicEvent


class Request(QuicConnectionProtocol):  # type: ignore[misc]  # aioquic has no types for strict mode
    """One request on one connection; ``body`` is complete when ``ended`` is set."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http = H3Connection(self._quic)
        self.body = b""
        self.ended = asyncio.Event()

    def send(self, authority: str, path: str) -> None:
        stream = self._quic.get_next_available_stream_id()
        headers = {":method": "GET", ":scheme": "https", ":authority": authority, ":path": path}
        self._http.send_headers(stream, [(k.encode(), v.encode()) for k, v in headers.items()], end_stream=True)
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.ended.set()
        for found in self._http.handle_event(event):
            if isinstance(found, DataReceived):
                self.body += found.data
            if isinstance(found, DataReceived | HeadersReceived) and found.stream_ended:
                self.ended.set()


async def fetch(url: str, address: str, ca: Path, timeout: float) -> bytes:
    """The body of ``url`` asked of ``address`` (or the name in the URL); TimeoutError, ConnectionError, OSError."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, server_name=host, idle_timeout=timeout)
    configuration.load_verify_locations(cafile=str(ca))
    async with asyncio.timeout(timeout):
        target = address or host
        async with connect(target, parts.port or 443, configuration=configuration, create_protocol=Request) as client:
            client.send(parts.netloc, parts.path or "/")
            await client.ended.wait()
            return bytes(client.body)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--connect", default="", metavar="ADDRESS", help="ask this address; the name stays in the SNI")
    parser.add_argument("--ca", type=Path, required=True)
    parser.add_argument("--timeout", type=float, default=10)
    options = parser.parse_args()
    try:
        body = asyncio.run(fetch(options.url, options.connect, options.ca, options.timeout))
    except (OSError, TimeoutError) as error:
        print(f"{options.url}: {error or 'timed out'}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(body)
    return 0 if body else 1


if __name__ == "__main__":
    raise SystemExit(main())
