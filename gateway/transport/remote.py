"""The server of an outbound or DNS server: dialled, and with TLS on the connection where its ``tls`` says so."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from gateway.core.address import Address
from gateway.core.contracts import Edge, Wiring
from gateway.core.errors import ConfigError, DialError, PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Stream
from gateway.tls.client import Client
from gateway.tls.options import OutboundTLSOptions, TLSRemoteOptions
from gateway.transport.dial import Dialer
from gateway.transport.layered import add_layer

HANDSHAKE = 15.0
"""Seconds that a TLS handshake may take."""


class Remote:
    """``wiring`` is read at use but for its directory. Raises ConfigError for a certificate that cannot be read."""

    def __init__(self, options: TLSRemoteOptions, wiring: Wiring) -> None:
        self.address = Address.of(options.server, options.server_port)
        self._wiring = wiring
        self._dialer = Dialer(options, wiring)
        tls = options.tls
        self._client = client(tls, options.server, wiring.directory) if tls is not None and tls.enabled else None

    async def connect(self, flow: Flow | None = None) -> Stream:
        """A stream to the server, past the TLS handshake. Raises DialError, and what a detour raises."""
        stream = await self._dialer.connect(self.address, flow)
        if self._client is None:
            return stream
        return (await secure(self._wiring.edge, stream, self._client))[0]


def client(options: OutboundTLSOptions, server: str, directory: Path, *protocols: str) -> Client:
    """See ``tls.client.Client``. Raises ConfigError, its path from the options that hold ``tls`` on."""
    try:
        return Client(options, server, directory, protocols)
    except ConfigError as error:
        error.path = f"tls.{error.path}"
        raise


async def secure(edge: Edge, stream: Stream, client: Client) -> tuple[Stream, str]:
    """TLS on ``stream``, and what ALPN chose ("" for nothing). Raises DialError with stage "tls" where it fails; then
    the stream is closed."""
    try:
        layer = client.layer()
        async with asyncio.timeout(HANDSHAKE):
            done = layer.shake(b"")
            while not done:
                await stream.write(layer.encode(b""))
                data = await stream.read()
                if not data:
                    raise PeerError("the server closed the connection in the middle of it")
                try:
                    done = layer.shake(data)
                except PeerError:
                    with suppress(OSError):
                        await stream.write(layer.encode(b""))  # the alert that tells the server why
                    raise
            if len(last := layer.encode(b"")):
                await stream.write(last)
        early = bytes(layer.decode(b""))
    except TimeoutError:
        stream.close()
        raise DialError(f"TLS with {client.name}: no answer within {HANDSHAKE:g} s", "tls") from None
    except (OSError, PeerError, ValueError) as error:
        stream.close()
        text = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DialError(f"TLS with {client.name}: {text}", "tls") from error
    except BaseException:
        stream.close()
        raise
    outer = add_layer(edge, stream, layer)
    outer.unread(early)
    return outer, layer.protocol
