"""Trojan's bytes, as its specification writes them."""

from __future__ import annotations

import pytest

from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.wire import Incomplete, Reader
from gateway.protocol.trojan import codec

KEY = b"d63dc919e201d7bc4c825630d2cf25fdc93d4b2f0d46706d29038d01"  # SHA-224 of "password"


def test_request() -> None:
    assert codec.key("password") == KEY
    assert codec.request(KEY, codec.CONNECT, Address.of("192.0.2.1", 443)) == (
        KEY + b"\r\n\x01\x01\xc0\x00\x02\x01\x01\xbb\r\n"
    )
    assert codec.request(KEY, codec.ASSOCIATE, Address.of("a.test", 53)) == KEY + b"\r\n\x03\x03\x06a.test\x00\x35\r\n"
    with pytest.raises(LocalError):
        codec.request(KEY, codec.CONNECT, Address("a" * 256, 1))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "a.test"])
def test_datagrams_at_every_cut(host: str) -> None:
    framing = codec.Datagrams()
    peer = Address.of(host, 53)
    wire = framing.wrap(b"hello", peer)
    for size in range(len(wire)):
        with pytest.raises(Incomplete):
            framing.unwrap(Reader(wire[:size]))
    reader = Reader(wire + framing.wrap(b"", peer))
    assert framing.unwrap(reader) == (peer, b"hello")
    assert framing.unwrap(reader) == (peer, b"")
    assert not reader.left


def test_wrong_datagrams() -> None:
    framing = codec.Datagrams()
    with pytest.raises(LocalError):
        framing.wrap(bytes(65536), Address.of("192.0.2.1", 1))
    for wire in (b"\x09", b"\x01\xc0\x00\x02\x01\x00\x35\x00\x01\n\nx"):
        with pytest.raises(PeerError):
            framing.unwrap(Reader(wire))
