"""HTTP proxy: targets, authentication, hop-by-hop fields, CONNECT."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import AuthError, PeerError
from gateway.protocol.http import codec


def request(target):
    return h11.Request(method="GET", target=target, headers=[("Host", "other.example")])


@pytest.mark.parametrize(
    ("text", "address", "path"),
    [
        ("http://example.com/a?b#c", ("example.com", 80), b"/a?b"),
        ("HTTP://Example.COM:8080", ("example.com", 8080), b"/"),
        ("http://user:pw@192.0.2.1?x", ("192.0.2.1", 80), b"/?x"),
        ("http://[2001:db8::1]:81/a:b@c", ("2001:db8::1", 81), b"/a:b@c"),
    ],
)
def test_target(text, address, path):
    assert codec.target(request(text)) == (Address.of(*address), path)


@pytest.mark.parametrize(
    "text", ["/", "*", "https://x/", "ftp://x/", "http://", "http:///a", "http://a:99999/", "http://[/"]
)
def test_bad_target(text):
    with pytest.raises(PeerError):
        codec.target(request(text))


@pytest.mark.parametrize("text", ["a", "a:", ":1", "a:b", "a:1/x", "[::1:5", "a:0"])
def test_bad_authority(text):
    with pytest.raises(PeerError):
        codec.parse_authority(text)


@given(st.text(max_size=60))
def test_any_authority(text):
    try:
        codec.parse_authority(text)
    except PeerError:
        pass


def test_hop_by_hop_fields_go():
    fields = [(b"connection", b"X-Mine, close"), (b"x-mine", b"1"), (b"proxy-authorization", b"s")]
    fields += [(b"te", b"trailers"), (b"keep-alive", b"5"), (b"proxy-connection", b"keep-alive"), (b"upgrade", b"h2c")]
    stay = [(b"accept", b"*/*"), (b"transfer-encoding", b"chunked"), (b"content-length", b"3")]
    assert codec.end_to_end(fields + stay) == stay


def test_authenticate():
    users = {"me": "sec:ret"}
    good = codec.basic("me", "sec:ret").encode()
    assert codec.authenticate([(b"proxy-authorization", good)], users) == "me"
    assert codec.authenticate([(b"Proxy-Authorization", good.replace(b"Basic", b"bAsIc"))], users) == "me"
    assert codec.authenticate([], {}) == ""
    for bad in (
        b"",
        b"Basic",
        b"Basic !!",
        codec.basic("me", "no").encode(),
        codec.basic("you", "").encode(),
        b"Bearer x",
    ):
        assert codec.authenticate([(b"proxy-authorization", bad)], users) is None
    assert codec.authenticate([], users) is None


def test_connect_byte_by_byte():
    shake = codec.Connect(Address.of("2001:db8::1", 443), "me", "secret", {"X-A": ["1", "2"]})
    hello = shake.hello().decode()
    assert hello.startswith("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nX-A: 1\r\nX-A: 2\r\n")
    assert "Proxy-Authorization: Basic bWU6c2VjcmV0\r\n\r\n" in hello
    answer = b"HTTP/1.1 200 fine\r\nA: b\r\n\r\n"
    assert [shake.receive(answer[at : at + 1]) for at in range(len(answer))] == [False] * (len(answer) - 1) + [True]
    shake = codec.Connect(Address.of("example.com", 443), path="/p")
    assert shake.hello().startswith(b"CONNECT /p HTTP/1.1\r\nHost: example.com:443\r\n")
    assert shake.receive(answer + b"early")
    assert shake.rest == b"early"


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 403 no\r\n\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"x" * 70000]
)
def test_connect_refused(answer):
    with pytest.raises(PeerError):
        codec.Connect(Address.of("example.com", 443)).receive(answer)


def test_connect_unauthorised():
    with pytest.raises(AuthError):
        codec.Connect(Address.of("example.com", 443)).receive(codec.UNAUTHORISED)
