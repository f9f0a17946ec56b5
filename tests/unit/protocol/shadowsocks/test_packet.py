"""Shadowsocks over UDP: both roles in memory, replays, users, strangers."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import AuthError, GatewayError, PeerError
from gateway.protocol.shadowsocks import packet
from gateway.protocol.shadowsocks.cipher import METHODS
from gateway.protocol.shadowsocks.codec import User, identities_of
from gateway.protocol.shadowsocks.replay import WINDOW, SaltFilter, Window

NOW = 1_700_000_000.0
TARGET = Address.of("2001:db8::9", 53)
ALL = list(METHODS.values())
KEYED = [method for method in ALL if method.key]
MODERN = [method for method in ALL if method.modern]
NAMED = [method for method in ALL if method.identities]


def ends(method, key=1, server_key=1):
    client = packet.Client(method, [bytes((key,)) * method.key], os.urandom, lambda: NOW)
    users = [User("", bytes((server_key,)) * method.key)]
    return client, packet.Server(method, users, os.urandom, lambda: NOW)


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_both_roles(method):
    client, server = ends(method)
    for number in range(5):
        data = os.urandom(number * 300)
        found = server.open(client.seal(data, TARGET))
        assert (found.destination, found.payload) == (TARGET, data)
        back = Address.of("example.com", number)
        assert client.open(server.seal(found.session, data, back)) == (back, data)


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_wrong_key(method):
    client, server = ends(method, server_key=2)
    with pytest.raises((AuthError, PeerError)):
        server.open(client.seal(b"x", TARGET))


@pytest.mark.parametrize("method", KEYED, ids=lambda method: method.name)
def test_replay(method):
    client, server = ends(method)
    wire = client.seal(b"x", TARGET)
    server.open(wire)
    with pytest.raises(AuthError, match="replay"):
        server.open(wire)


@pytest.mark.parametrize("method", MODERN, ids=lambda method: method.name)
def test_replayed_answer(method):
    client, server = ends(method)
    found = server.open(client.seal(b"x", TARGET))
    wire = server.seal(found.session, b"y", TARGET)
    client.open(wire)
    with pytest.raises(AuthError, match="replay"):
        client.open(wire)


@pytest.mark.parametrize("method", MODERN, ids=lambda method: method.name)
def test_old_packet(method):
    client, server = ends(method)
    server._clock = lambda: NOW + 31
    with pytest.raises(PeerError, match="timestamp"):
        server.open(client.seal(b"x", TARGET))


@pytest.mark.parametrize("method", MODERN, ids=lambda method: method.name)
def test_out_of_order_is_taken(method):
    client, server = ends(method)
    wires = [client.seal(bytes((number,)), TARGET) for number in range(50)]
    assert [server.open(wire).payload[0] for wire in reversed(wires)] == list(reversed(range(50)))


@pytest.mark.parametrize("method", NAMED, ids=lambda method: method.name)
def test_identity_header(method):
    users = [User(f"user{number}", bytes((number,)) * method.key) for number in range(1, 4)]
    main = bytes((9,)) * method.key
    server = packet.Server(method, users, os.urandom, lambda: NOW, main, identities_of(users))
    client = packet.Client(method, [main, users[1].key], os.urandom, lambda: NOW)
    found = server.open(client.seal(b"up", TARGET))
    assert (found.payload, found.session.user.name) == (b"up", "user2")
    assert client.open(server.seal(found.session, b"down", TARGET)) == (TARGET, b"down")
    stranger = packet.Client(method, [main, bytes(method.key)], os.urandom, lambda: NOW)
    with pytest.raises(AuthError, match="identity"):
        server.open(stranger.seal(b"up", TARGET))


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)
def test_truncated_at_each_byte(method):
    client, server = ends(method)
    wire = client.seal(b"", TARGET)
    for size in range(len(wire)):
        with pytest.raises((AuthError, PeerError)):
            server.open(wire[:size])
        with pytest.raises((AuthError, PeerError)):
            client.open(wire[:size])


@given(st.sampled_from(ALL), st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes(method, data):
    client, server = ends(method)
    for end in (client, server):
        try:
            end.open(data)
        except GatewayError:
            pass


def test_sessions_are_bounded():
    method = METHODS["2022-blake3-aes-128-gcm"]
    _, server = ends(method)
    for _ in range(packet.SESSIONS + 50):
        server.open(ends(method)[0].seal(b"", TARGET))
    assert len(server._sessions) == packet.SESSIONS


@given(st.lists(st.integers(0, 3 * WINDOW), max_size=200))
def test_window_against_a_set(numbers):
    window, seen, newest = Window(), set(), -1
    for number in numbers:
        right = number not in seen and number > newest - WINDOW
        assert window.check(number) == right
        if right:
            window.add(number)
            seen.add(number)
            newest = max(newest, number)


def test_salts_are_kept_for_a_period_and_bounded():
    seen = SaltFilter(period=60, capacity=100)
    seen.add(b"a", 0)
    seen.add(b"b", 59)
    assert b"a" in seen
    seen.add(b"c", 61)
    assert b"b" in seen
    seen.add(b"d", 300)
    assert b"b" not in seen
    for number in range(1000):
        seen.add(number.to_bytes(2, "big"), 301)
    assert len(seen._fresh) + len(seen._old) <= 200
