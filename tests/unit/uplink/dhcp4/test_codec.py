"""The DHCP codec: form, RFC 3396 pieces, overload, option readers; scapy as an independent oracle."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import LocalError, PeerError
from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.codec import Message, Route

MAC = bytes.fromhex("020000000001")
ips = st.integers(0, 2**32 - 1).map(IPv4Address)
messages = st.builds(
    Message,
    op=st.sampled_from([1, 2]),
    xid=st.integers(0, 2**32 - 1),
    hardware=st.binary(max_size=16),
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda code: code != 52), st.binary(max_size=600), max_size=6
    ),
    htype=st.integers(0, 255),
    secs=st.integers(0, 65535),
    flags=st.integers(0, 65535),
    ciaddr=ips,
    yiaddr=ips,
    siaddr=ips,
    giaddr=ips,
)  # fmt: skip


@given(messages)
def test_round_trip(message: Message) -> None:
    wire = codec.encode(message)
    assert len(wire) >= 300
    assert codec.decode(wire) == message


def test_form() -> None:
    wire = codec.encode(Message(1, 7, MAC, {61: b"x", 53: b"\x01", 121: bytes(300)}))
    assert wire[240:243] == b"\x35\x01\x01"
    assert wire.rstrip(b"\0")[-1] == 255
    assert wire.count(b"\x79\xff") == 1
    for bad in (
        Message(1, 7, bytes(17)),
        Message(1, 1 << 32, MAC),
        Message(1, 7, MAC, {0: b""}),
        Message(1, 7, MAC, {255: b""}),
    ):
        with pytest.raises(LocalError):
            codec.encode(bad)


@given(st.binary(max_size=700))
def test_never_raises(data: bytes) -> None:
    for packet in (data, bytes(236) + codec.COOKIE + data, b"\x02" + bytes(235) + codec.COOKIE + data):
        try:
            codec.decode(packet)
        except PeerError:
            pass
    try:
        codec.unwrap(data)
    except PeerError:
        pass
    for reader in (
        codec.address, codec.addresses, codec.text, codec.search, codec.classless_routes, codec.static_routes,
        codec.mask_length,
    ):  # fmt: skip
        reader(data)
    codec.number(data, 4)


def raw(options: bytes, file: bytes = b"", sname: bytes = b"") -> bytes:
    fixed = codec.FIXED.pack(2, 1, 6, 0, 1, 0, 0, bytes(4), bytes(4), bytes(4), bytes(4), MAC, sname, file)
    return fixed + codec.COOKIE + options


def test_long_options_and_overload() -> None:
    message = codec.decode(raw(b"\x79\x02ab\x34\x01\x03\x79\x01c\xff\x79\x01z", b"\x79\x01d\xff", b"\x79\x01e\xff"))
    assert message.options == {121: b"abcde"}
    assert codec.decode(raw(b"\x06\x01a\xff", b"\x06\x01b\xff")).options == {6: b"a"}
    assert codec.decode(raw(b"\x34\x01\x02", b"\x06\x01b\xff", b"\x06\x01c")).options == {6: b"c"}


def test_ragged_options() -> None:
    assert codec.decode(raw(b"\0\0\x35\x01\x05\x50\0")).options == {53: b"\x05", 80: b""}  # no 255, empty option
    assert codec.decode(raw(b"\x35\x01\x05\x06\x08abc")).options == {53: b"\x05"}  # cut
    assert codec.decode(raw(b"\x35\x01\x05\x06")).options == {53: b"\x05"}
    assert codec.decode(raw(b"\x35\x02\x05\x05\xff")).type == 0
    with pytest.raises(PeerError):
        codec.decode(raw(b"")[:-1])


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (
            "03656e67056170706c6503636f6d00096d61726b6574696e67c004",
            ("eng.apple.com", "marketing.apple.com"),
        ),  # RFC 3397
        ("c000", None),  # to itself
        ("0161c000", None),  # a loop
        ("0161c002", None),
        ("016100ff", None),
        ("40616200", None),
        ("016100c000", ("a",)),
        ("0161", None),
        ("03612062000162 00", ("b",)),  # "a b" is no host name
    ],
)
def test_search(data: str, want: tuple[str, ...] | None) -> None:
    assert codec.search(bytes.fromhex(data)) == want


def test_routes() -> None:
    data = bytes.fromhex("00c0000201 18c63364c0000202 20cb007101 00000000".replace(" ", ""))
    assert codec.classless_routes(data) == (
        Route(IPv4Network("0.0.0.0/0"), IPv4Address("192.0.2.1")),
        Route(IPv4Network("198.51.100.0/24"), IPv4Address("192.0.2.2")),
        Route(IPv4Network("203.0.113.1/32"), None),
    )
    assert codec.classless_routes(b"\x21" + bytes(9)) is None
    assert codec.classless_routes(data[:-1]) is None
    static = bytes([10, 0, 0, 0, 192, 0, 2, 1, 10, 1, 1, 1, 192, 0, 2, 1, 0, 0, 0, 0, 192, 0, 2, 1])
    assert codec.static_routes(static) == (
        Route(IPv4Network("10.0.0.0/8"), IPv4Address("192.0.2.1")),
        Route(IPv4Network("10.1.1.1/32"), IPv4Address("192.0.2.1")),
    )


def test_small_readers() -> None:
    masks = [[255, 255, 255, 0], [255] * 4, [255, 0, 255, 0], [0] * 4, [255] * 3]
    assert [codec.mask_length(bytes(mask)) for mask in masks] == [24, 32, None, None, None]
    assert codec.text(b"Example.COM\0") == "example.com"
    assert [codec.text(x) for x in (b"", b"\0", b"a b", b"a\nserver=1", b"a..b", b"x" * 64)] == [None] * 6
    assert codec.number(b"\xff\xff\xff\xff", 4) == 0xFFFFFFFF
    assert codec.number(b"\xff", 4) is None


def packet(payload: bytes = b"hello") -> bytes:
    """A reply as a server would send it: ports swapped against ``wrap``."""
    out = bytearray(codec.wrap(payload, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9")))
    out[20:24] = struct.pack("!HH", 67, 68)  # the sum of the ports is the same
    return bytes(out)


def test_unwrap() -> None:
    good = packet()
    assert codec.unwrap(good) == (b"hello", IPv4Address("192.0.2.1"))
    assert codec.unwrap(good + bytes(13))[0] == b"hello"  # Ethernet padding
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(PeerError):
        codec.unwrap(flipped)
    assert codec.unwrap(flipped, verify=False)[0] == b"helln"
    for size in range(len(good)):
        with pytest.raises(PeerError):
            codec.unwrap(good[:size])
    with pytest.raises(PeerError):
        codec.unwrap(codec.wrap(b"hello", codec.ANY, codec.ANY))  # port 67


def test_scapy_agrees() -> None:
    dhcp = pytest.importorskip("scapy.layers.dhcp")
    inet = pytest.importorskip("scapy.layers.inet")
    wire = codec.encode(Message(1, 0x12345678, MAC, {53: b"\x01", 50: bytes([192, 0, 2, 9]), 12: b"router"}))
    frame = codec.wrap(wire, codec.ANY, IPv4Address("255.255.255.255"))
    seen = inet.IP(frame)
    assert seen[dhcp.BOOTP].xid == 0x12345678
    assert ("message-type", 1) in seen[dhcp.DHCP].options
    assert ("requested_addr", "192.0.2.9") in seen[dhcp.DHCP].options
    ip_sum, udp_sum = seen.chksum, seen[inet.UDP].chksum
    del seen.chksum
    del seen[inet.UDP].chksum
    again = inet.IP(bytes(seen))
    assert (again.chksum, again[inet.UDP].chksum) == (ip_sum, udp_sum)

    options = [
        ("message-type", "ack"),
        ("server_id", "192.0.2.1"),
        ("lease_time", 600),
        ("name_server", "192.0.2.1", "192.0.2.2"),
        "end",
    ]
    reply = dhcp.BOOTP(op=2, xid=9, chaddr=MAC, yiaddr="192.0.2.9") / dhcp.DHCP(options=options)
    built = inet.IP(src="192.0.2.1", dst="192.0.2.9") / inet.UDP(sport=67, dport=68) / reply
    payload, _ = codec.unwrap(bytes(built))
    message = codec.decode(payload)
    assert message.type == codec.Type.ACK
    assert str(message.yiaddr) == "192.0.2.9"
    assert codec.addresses(message.options[6]) == (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
