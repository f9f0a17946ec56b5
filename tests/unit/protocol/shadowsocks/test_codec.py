"""Shadowsocks over TCP: both roles in memory, every cut, and what a stranger may send."""

from __future__ import annotations

import os
import struct
import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import AuthError, PeerError
from gateway.protocol.shadowsocks import chunk, codec
from gateway.protocol.shadowsocks.cipher import METHODS, hkdf_sha1, identity_key, password_key
from gateway.protocol.shadowsocks.replay import SaltFilter

KEYED = [method for method in METHODS.values() if method.key]
CLASSIC = [method for method in KEYED if not method.modern]
MODERN = [method for method in KEYED if method.modern]
TARGET = Address.of("example.com", 443)
NOW = 1_700_000_000.0


def key_of(method, fill=1):
    return bytes((fill,)) * method.key


def ends(method, *, clock=lambda: NOW, seen=None, target=TARGET, random=os.urandom):
    client = codec.Client(method, [key_of(method)], target, random, clock)
    users = [codec.User("", key_of(method))]
    return client, codec.Server(method, users, seen or SaltFilter(), os.urandom, lambda: NOW)


def test_subkey_of_rfc5869_vector():
    found = hkdf_sha1(bytes([0x0B] * 11), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert found.hex() == ("085a01ea1b10f36933068b56efa5ad81a4f14b822f5b091568a9cdd4f155fda2c22e422478d305f3f896")


def test_password_key_is_md5_chain():
    assert password_key("foobar", 32).hex() == "3858f62230ac3c915f300c664312c63f" + "568378529614d22ddb49237d2f60bfdf"


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
@pytest.mark.parametrize("target", [TARGET, Address.of("192.0.2.7", 1), Address.of("2001:db8::7", 65535)], ids=str)
def test_both_roles(method, target):
    client, server = ends(method, target=target)
    up, down = os.urandom(200_001), os.urandom(150_000)
    got = bytes(server.decode(client.hello()))
    assert server.request == (target, "")
    for part in (up[:3], up[3:100_000], up[100_000:]):
        got += bytes(server.decode(bytes(client.encode(part))))
    assert got == up
    assert server.encode(b"") == b""
    wire = bytes(server.encode(down[:70_000])) + bytes(server.encode(down[70_000:]))
    assert bytes(client.decode(wire)) == down


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_byte_by_byte(method):
    client, server = ends(method)
    up = os.urandom(700)
    got = b"".join(bytes(server.decode(bytes((byte,)))) for byte in client.hello() + bytes(client.encode(up)))
    assert got == up
    down = b"".join(
        bytes(client.decode(bytes((byte,)))) for byte in bytes(server.encode(up)) + bytes(server.encode(up))
    )
    assert down == up + up


@given(st.data())
@settings(max_examples=50)
def test_any_cuts(data):
    method = data.draw(st.sampled_from(KEYED))
    client, server = ends(method, random=Random(0).randbytes)
    up = bytes(data.draw(st.integers(0, 90_000)))
    wire = client.hello() + bytes(client.encode(up))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    got = b""
    for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        got += bytes(server.decode(memoryview(wire)[start:end]))
    assert got == up


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_wrong_key(method):
    client, _ = ends(method)
    server = codec.Server(method, [codec.User("", key_of(method, 2))], SaltFilter(), os.urandom, lambda: NOW)
    with pytest.raises(AuthError):
        server.decode(client.hello() + bytes(client.encode(bytes(99))))


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_replayed_request(method):
    seen = SaltFilter()
    client, server = ends(method, seen=seen)
    wire = client.hello()
    server.decode(wire)
    _, other = ends(method, seen=seen)
    with pytest.raises(AuthError, match="replay"):
        other.decode(wire)


def test_failed_request_does_not_fill_the_filter():
    method = METHODS["aes-128-gcm"]
    seen = SaltFilter()
    _, server = ends(method, seen=seen)
    junk = os.urandom(60)
    with pytest.raises(AuthError):
        server.decode(junk)
    assert junk[:16] not in seen


@pytest.mark.parametrize("skew", [-31, 31, -1e6, 1e6])
@pytest.mark.parametrize("method", MODERN, ids=lambda method: method.name)
def test_clock_too_far_off(method, skew):
    client, server = ends(method, clock=lambda: NOW + skew)
    with pytest.raises(PeerError, match="timestamp"):
        server.decode(client.hello())


@pytest.mark.parametrize("method", MODERN, ids=lambda method: method.name)
def test_response_to_another_request(method):
    client, server = ends(method)
    other, other_server = ends(method)
    server.decode(client.hello())
    other_server.decode(other.hello())
    with pytest.raises(PeerError, match="another request"):
        client.decode(bytes(other_server.encode(b"hello")))


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_each_flipped_byte_ends_it(method):
    client, _ = ends(method)
    wire = client.hello() + bytes(client.encode(b"payload"))
    # The padding of a 2022 request is long; its bytes are one AEAD message like any other.
    for at in [*range(100), *range(len(wire) - 60, len(wire))]:
        if at >= len(wire):
            continue
        server = codec.Server(method, [codec.User("", key_of(method))], SaltFilter(), os.urandom, lambda: NOW)
        bad = bytearray(wire)
        bad[at] ^= 1
        with pytest.raises((AuthError, PeerError)):
            server.decode(bad)


@pytest.mark.parametrize("method", CLASSIC, ids=lambda method: method.name)
def test_length_over_the_limit(method):
    client, server = ends(method)
    server.decode(client.hello())
    sealer = client._sealer
    size = sealer.one(struct.pack("!H", 0x4000))
    with pytest.raises(PeerError, match="chunk of"):
        server.decode(size)


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_memory_is_flat(method):
    """A stranger that trickles and a client that streams both leave at most one frame behind."""
    client, server = ends(method)
    server.decode(client.hello())
    data = bytes(262_144)
    for _ in range(2):
        server.decode(bytes(client.encode(data)))
    tracemalloc.start()
    for _ in range(20):
        server.decode(bytes(client.encode(data)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 400_000


@pytest.mark.parametrize("method", CLASSIC, ids=lambda method: method.name)
def test_users_are_told_apart(method):
    users = [codec.User(f"user{number}", key_of(method, number)) for number in range(1, 5)]
    client = codec.Client(method, [key_of(method, 3)], TARGET, os.urandom, lambda: NOW)
    server = codec.Server(method, users, SaltFilter(), os.urandom, lambda: NOW)
    server.decode(client.hello())
    assert server.request == (TARGET, "user3")
    assert bytes(client.decode(bytes(server.encode(b"back")))) == b"back"


@pytest.mark.parametrize("method", [m for m in MODERN if m.identities], ids=lambda method: method.name)
def test_identity_header(method):
    users = [codec.User(f"user{number}", key_of(method, number)) for number in range(1, 5)]
    main = key_of(method, 9)

    def server():
        return codec.Server(method, users, SaltFilter(), os.urandom, lambda: NOW, main, codec.identities_of(users))

    client = codec.Client(method, [main, key_of(method, 2)], TARGET, os.urandom, lambda: NOW)
    end = server()
    assert bytes(end.decode(client.hello() + bytes(client.encode(b"up")))) == b"up"
    assert end.request == (TARGET, "user2")
    assert bytes(client.decode(bytes(end.encode(b"down")))) == b"down"
    stranger = codec.Client(method, [main, key_of(method, 7)], TARGET, os.urandom, lambda: NOW)
    with pytest.raises(AuthError, match="identity"):
        server().decode(stranger.hello())
    assert identity_key(main, b"a" * method.key) != identity_key(main, b"b" * method.key)


def test_a_large_buffer_is_given_back():
    room = chunk.Room()
    assert len(room.take(1 << 20)) >= 1 << 20
    for _ in range(40):
        room.take(100)
    assert len(room.take(100)) < 4096
