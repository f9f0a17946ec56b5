"""SOCKS handshakes: both roles in memory, byte by byte, and what a stranger may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import AuthError, LocalError, PeerError
from gateway.protocol.socks import codec

HOSTS = [Address.of("192.0.2.1", 80), Address.of("2001:db8::1", 443), Address.of("example.com", 65535)]


def shake(client, server, step=1):
    """Run both ends against each other, ``step`` bytes at a time."""
    up, down = client.hello(), b""
    while up or down:
        answer = b""
        for start in range(0, len(up), step):
            answer += server.receive(up[start : start + step])
        if server.request and client.bound is None and not answer:
            answer = codec.reply(server.request.version, codec.OK, Address.of("192.0.2.9", 9))
        up = b""
        for start in range(0, len(answer), step):
            up += client.receive(answer[start : start + step])
        if server.failed or client.bound:
            return


@pytest.mark.parametrize("users", [{}, {"me": "secret"}], ids=["open", "password"])
@pytest.mark.parametrize("target", HOSTS, ids=str)
@pytest.mark.parametrize("step", [1, 1000])
def test_version_5(users, target, step):
    server = codec.Server(users)
    client = codec.Client("5", target, codec.CONNECT, *(next(iter(users.items())) if users else ("", "")))
    shake(client, server, step)
    assert server.request == (5, codec.CONNECT, target, "me" if users else "")
    assert client.bound == Address.of("192.0.2.9", 9)


@pytest.mark.parametrize(("version", "target"), [("4", HOSTS[0]), ("4a", HOSTS[0]), ("4a", HOSTS[2])])
@pytest.mark.parametrize("step", [1, 1000])
def test_version_4(version, target, step):
    server = codec.Server({})
    client = codec.Client(version, target, username="me")
    shake(client, server, step)
    assert server.request == (4, codec.CONNECT, target, "")
    assert client.bound == Address.of("192.0.2.9", 9)


def test_version_4_user_without_password():
    for users, fails in (({"me": ""}, False), ({"me": "secret"}, True), ({"you": ""}, True)):
        server = codec.Server(users)
        out = server.receive(codec.Client("4", HOSTS[0], username="me").hello())
        assert bool(server.failed) is fails
        assert out == (codec.reply(4, codec.NOT_ALLOWED) if fails else b"")


def test_wrong_password():
    for name, password in (("me", "wrong"), ("you", "secret"), ("", "")):
        server = codec.Server({"me": "secret"})
        assert server.receive(b"\x05\x02\x00\x02") == b"\x05\x02"
        head = bytes((1, len(name))) + name.encode() + bytes((len(password),)) + password.encode()
        assert server.receive(head) == b"\x01\x01"
        assert server.failed
        assert server.request is None


def test_password_is_demanded():
    server = codec.Server({"me": "secret"})
    assert server.receive(b"\x05\x01\x00") == b"\x05\xff"
    assert server.failed


def test_bytes_after_the_request_are_kept():
    server = codec.Server({})
    server.receive(b"\x05\x01\x00" + b"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50" + b"early")
    assert server.rest == b"early"


def test_bind_is_refused():
    server = codec.Server({})
    assert server.receive(b"\x05\x01\x00\x05\x02\x00\x01\xc0\x00\x02\x01\x00\x50").endswith(codec.reply(5, 7))
    assert server.failed


def test_refusals_reach_the_client():
    client = codec.Client("5", HOSTS[0])
    client.receive(b"\x05\x00")
    with pytest.raises(PeerError, match="connection refused"):
        client.receive(b"\x05\x05\x00\x01\0\0\0\0\0\0")
    with pytest.raises(AuthError):
        codec.Client("5", HOSTS[0]).receive(b"\x05\x02")
    client = codec.Client("5", HOSTS[0], username="me", password="x")
    client.receive(b"\x05\x02")
    with pytest.raises(AuthError):
        client.receive(b"\x01\x01")
    with pytest.raises(PeerError, match="91"):
        codec.Client("4", HOSTS[0]).receive(b"\0\x5b\0\0\0\0\0\0")
    with pytest.raises(LocalError):
        codec.Client("4", HOSTS[2]).hello()


@given(st.binary(max_size=700))
def test_a_server_keeps_little_and_raises_one_error(data):
    server = codec.Server({"me": "secret"})
    try:
        for byte in data:
            server.receive(bytes((byte,)))
            if server.failed or server.request:
                return
    except PeerError:
        return
    assert len(server.rest) <= 600


@given(st.binary(max_size=100))
def test_a_client_raises_known_errors(data):
    try:
        codec.Client("5", HOSTS[0], username="me", password="secret").receive(data)
    except (PeerError, AuthError):
        pass


@pytest.mark.parametrize("target", HOSTS, ids=str)
def test_datagrams(target):
    address, payload = codec.unwrap(codec.wrap(target) + b"data")
    assert (address, bytes(payload)) == (target, b"data")
    for size in range(len(codec.wrap(target))):
        with pytest.raises(PeerError):
            codec.unwrap(codec.wrap(target)[:size])
    with pytest.raises(PeerError, match="fragment"):
        codec.unwrap(b"\0\0\x01" + codec.wrap(target)[3:])
