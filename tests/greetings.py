"""What real clients say first."""

from __future__ import annotations

import contextlib
import ssl

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection


def hello(name: str) -> bytes:
    """The first bytes of a TLS client: its ClientHello, with ``name`` as SNI unless it is an address."""
    out = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return out.read()


def initial(name: str, version: int = 1, filler: int = 0) -> list[bytes]:
    """The first datagrams of a QUIC client. ``filler``: protocols of 200 letters besides h3, so that there are more."""
    options = QuicConfiguration(
        server_name=name,
        original_version=version,
        supported_versions=[version],
        alpn_protocols=["x" * 200] * filler + ["h3"],
    )
    client = QuicConnection(configuration=options)
    client.connect(("192.0.2.1", 443), now=0)
    return [data for data, _ in client.datagrams_to_send(now=0)]
