"""Sniffers on hellos of real libraries, cut at every byte, and on any bytes."""

from __future__ import annotations

import itertools

import dns.message
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.route.sniff import NEED_MORE, PacketState, Sniffed, http, quic, sniff_packet, sniff_stream
from tests.greetings import hello, initial

V2 = 0x6B3343CF


def test_tls_at_every_cut():
    data = hello("WWW.Example.com")
    for size in range(len(data)):
        assert sniff_stream(data[:size]) is NEED_MORE, size
    assert sniff_stream(data + b"more") == Sniffed("tls", "www.example.com")


@pytest.mark.parametrize("size", [1, 5, 100])
def test_tls_over_several_records(size):
    body = hello("example.com")[5:]
    records = b"".join(
        b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part
        for part in (body[start : start + size] for start in range(0, len(body), size))
    )
    assert sniff_stream(records[:-1]) is NEED_MORE
    assert sniff_stream(records) == Sniffed("tls", "example.com")


def extensions(*items):
    body = b"".join(kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in items)
    tail = len(body).to_bytes(2, "big") + body if items else b""
    message = b"\x03\x03" + bytes(32) + b"\x00" + b"\x00\x04\x0a\x0a\x13\x01" + b"\x01\x00" + tail
    message = b"\x01" + len(message).to_bytes(3, "big") + message
    return b"\x16\x03\x01" + len(message).to_bytes(2, "big") + message


def name(text):
    entry = b"\x00" + len(text).to_bytes(2, "big") + text
    return (0, len(entry).to_bytes(2, "big") + entry)


def test_tls_grease_and_no_name():
    assert sniff_stream(extensions((0x0A0A, b""), (0xFAFA, b"\0"), name(b"example.org"))) == Sniffed(
        "tls", "example.org"
    )
    assert sniff_stream(extensions((0x0A0A, b""))) == Sniffed("tls")
    assert sniff_stream(extensions()) == Sniffed("tls")
    assert sniff_stream(hello("192.0.2.1")) == Sniffed("tls")


@pytest.mark.parametrize(
    "text", [b"bad name", b"\xff\xfe", b"a" * 300, b"192.0.2.1", b"2001:db8::1", b"a..b", b"", b"-\n"]
)
def test_tls_names_that_are_none(text):
    assert sniff_stream(extensions(name(text))) == Sniffed("tls")


def test_tls_announces_too_much():
    assert sniff_stream(b"\x16\x03\x01\xff\xff\x01\x00\x02\x00") is None
    assert sniff_stream(b"\x16\x03\x01\x40\x00\x01\xff\xff\xff") is None
    assert sniff_stream(b"\x16\x03\x01\x00\x40\x02\x00\x00\x20") is None


@pytest.mark.parametrize("method", ["GET", "POST", "PROPFIND", "M-SEARCH", "UPDATEREDIRECTREF", "PATCH", "OPTIONS"])
def test_http(method):
    data = f"{method} /a HTTP/1.1\r\nAccept: */*\r\nhOsT:  Example.com:8080 \r\n\r\n".encode()
    end = data.index(b" \r\n\r\n") + 3
    for size in range(end):
        assert sniff_stream(data[:size]) is NEED_MORE, size
    assert sniff_stream(data[:end]) == Sniffed("http", "example.com")


@pytest.mark.parametrize(
    ("head", "domain"),
    [
        ("GET http://u@Example.com:80/x HTTP/1.1\r\n", "example.com"),
        ("CONNECT example.com:443 HTTP/1.1\r\n", "example.com"),
        ("GET / HTTP/1.0\r\n\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n", ""),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n", ""),
        ("PRI * HTTP/2.0\r\n", ""),
    ],
)
def test_http_forms(head, domain):
    assert sniff_stream(head.encode()) == Sniffed("http", domain)


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"220 smtp ready\r\n",
        b"get / HTTP/1.1\r\n",
        b"GET /\r\n",
        b"\x00\x00",
        b"\x13BitTorrent",
    ],
)
def test_other_streams(data):
    assert sniff_stream(data) is None


def test_dns():
    wire = dns.message.make_query("example.com", "AAAA", use_edns=True).to_wire()
    assert sniff_packet(wire) == Sniffed("dns")
    framed = len(wire).to_bytes(2, "big") + wire
    for size in range(len(framed)):
        assert sniff_stream(framed[:size]) is NEED_MORE, size
        if 0 < size < len(wire) - 11:
            assert sniff_packet(wire[: size - 1]) is None
    assert sniff_stream(framed) == Sniffed("dns")
    answer = dns.message.make_response(dns.message.from_wire(wire)).to_wire()
    assert sniff_packet(answer) is None


def test_only_the_named_sniffers():
    assert sniff_stream(hello("a.example"), frozenset({"http"})) is None
    assert sniff_packet(initial("a.example")[0], frozenset({"dns"})) is None


@pytest.mark.parametrize("version", [1, V2], ids=["v1", "v2"])
def test_quic_in_any_order(version):
    assert sniff_packet(initial("Example.org", version)[0]) == Sniffed("quic", "example.org")
    datagrams = initial("example.org", version, filler=10)
    assert len(datagrams) > 1
    for order in itertools.permutations(datagrams):
        state = PacketState()
        found = [sniff_packet(data, None, state) for data in order]
        assert found == [NEED_MORE] * (len(order) - 1) + [Sniffed("quic", "example.org")]


def test_quic_rfc9001_keys():
    """RFC 9001 appendix A.1."""
    keys = quic.Keys(quic.VERSIONS[1], bytes.fromhex("8394c8f03e515708"))
    assert keys.iv.to_bytes(12, "big").hex() == "fa044b2f42a3fd3b46fb255c"


def test_quic_damaged():
    data = bytearray(initial("example.org")[0])
    data[100] ^= 1
    assert sniff_packet(bytes(data)) is None
    for size in range(0, len(data), 7):
        sniff_packet(bytes(data[:size]))


def test_quic_waits_for_a_bounded_number():
    state = PacketState()
    first = initial("example.org", filler=10)[0]
    for _ in range(quic.DATAGRAMS):
        assert sniff_packet(first, frozenset({"quic"}), state) is NEED_MORE
    assert sniff_packet(first, frozenset({"quic"}), state) is None


@given(
    st.binary(max_size=300),
    st.sampled_from(
        [b"", b"\x16\x03\x01", b"GET ", b"\x00\x20", b"\xc0\x00\x00\x00\x01\x08", b"\xd0\x6b\x33\x43\xcf\x08"]
    ),
)
@settings(max_examples=500)
def test_never_raises(data, head):
    sniff_stream(head + data)
    sniff_packet(head + data, None, PacketState())


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200)
def test_never_raises_on_damaged_hellos(data):
    wire = bytearray(hello("example.com"))
    for at in data.draw(st.lists(st.integers(0, len(wire) - 1), min_size=1, max_size=8)):
        wire[at] = data.draw(st.integers(0, 255))
    sniff_stream(bytes(wire))


LINES = st.sampled_from((
    b"Host: a.example", b"hOsT:b.example:8080 \t", b"host :c.example", b"Host:", b"Accept: x", b": none", b"no colon",
    b"", b"\t folded: d.example", b"X: Host: e.example", b"Host: [2001:db8::1]:80", b"Host: 192.0.2.1",
    b"A\rHost: f.example",
))  # fmt: skip


@given(st.lists(st.tuples(LINES, st.sampled_from((b"\r\n", b"\n", b"\r\r\n"))), max_size=6), st.integers(0, 3))
def test_the_short_way_through_http_headers_finds_what_the_long_one_does(lines, cut):
    data = b"GET / HTTP/1.1\r\n" + b"".join(line + end for line, end in lines)
    data = data[: len(data) - cut]
    long = http._field(data, data.find(b"\n") + 1) if b"\n" in data else NEED_MORE
    assert http.sniff(data) == long


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "tail", [b"Host:" + b" " * 65000, b"Host: " + b" x" * 30000, b"a:b\r\n" * 13000, b"Host:" * 13000]
)
def test_no_header_makes_the_sniffer_slow(tail):
    """An expression that can read a byte in two ways takes hours for these."""
    assert http.sniff(b"GET / HTTP/1.1\r\n" + tail) is NEED_MORE
