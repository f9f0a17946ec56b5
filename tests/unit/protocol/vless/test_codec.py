"""VLESS' bytes: request, response, the three framings of datagrams."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.wire import Incomplete, Reader
from gateway.protocol.vless import codec, packet

UUID = "8b2d0d7a-3f0e-4a44-9c0e-1f2f6a1f7a11"
RAW = bytes.fromhex(UUID.replace("-", ""))
V4, V6, NAME = Address.of("192.0.2.1", 53), Address.of("2001:db8::1", 53), Address.of("a.test", 53)


@pytest.mark.parametrize(
    "text", [UUID, UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", f"urn:uuid:{RAW.hex()}"]
)
def test_spellings_of_a_uuid(text: str) -> None:
    assert codec.identity(text) == RAW


@pytest.mark.parametrize("text", ["my house", UUID[:-1], UUID.replace("-", "--", 1), f"{{{UUID}", ""])
def test_other_text_is_hashed(text: str) -> None:
    """Version 5, in the namespace of zeros."""
    found = codec.identity(text)
    assert found[6] >> 4 == 5
    assert found[8] >> 6 == 2
    assert found != RAW


def test_request() -> None:
    assert codec.request(RAW, codec.TCP, V4) == b"\0" + RAW + b"\0\1\0\x35\1\xc0\0\2\1"
    assert codec.request(RAW, codec.UDP, NAME) == b"\0" + RAW + b"\0\2\0\x35\2\6a.test"
    assert codec.request(RAW, codec.TCP, V6) == b"\0" + RAW + b"\0\1\0\x35\3" + V6.host.packed  # type: ignore[union-attr]
    assert codec.request(RAW, codec.MUX, None) == b"\0" + RAW + b"\0\3"
    with pytest.raises(LocalError):
        codec.request(RAW, codec.TCP, Address("a" * 256, 1))


@given(st.binary(max_size=4), st.binary(max_size=8), st.lists(st.integers(0, 14), max_size=4))
def test_response_at_every_cut(extra: bytes, payload: bytes, cuts: list[int]) -> None:
    wire = bytes((0, len(extra))) + extra + payload
    client = codec.Client()
    places = [0, *sorted(cuts), len(wire)]
    parts = [wire[start:end] for start, end in itertools.pairwise(places)]
    assert b"".join(bytes(client.decode(part)) for part in parts) == payload
    with pytest.raises(PeerError):
        codec.Client().decode(b"\1")


FRAMINGS = {
    "plain": (lambda: packet.Plain(V4), [V4]),
    "packetaddr": (packet.PacketAddress, [V4, V6]),
    "xudp": (lambda: packet.Xudp(V4), [V4, V6, NAME]),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_datagrams_at_every_cut(name: str) -> None:
    """What a client's xudp writes first is NEW, which a server may not answer with; so the second is looked at."""
    make, peers = FRAMINGS[name]
    for peer in peers:
        framing = make()
        framing.wrap(b"first", peer)
        wire = framing.wrap(b"hello", peer)
        for size in range(len(wire)):
            with pytest.raises(Incomplete):
                make().unwrap(Reader(wire[:size]))
        reader = Reader(wire)
        assert make().unwrap(reader) == (peer, b"hello")
        assert not reader.left
    with pytest.raises(LocalError):
        make().wrap(bytes(65536), peers[0])


def test_what_a_framing_cannot_say() -> None:
    with pytest.raises(LocalError):
        packet.Plain(V4).wrap(b"x", V6)
    with pytest.raises(LocalError):
        packet.PacketAddress().wrap(b"x", NAME)


def test_xudp_frames() -> None:
    sent = packet.Xudp(V4)
    assert sent.wrap(b"ab", V4) == b"\0\x0c\0\0\1\1\2\0\x35\1\xc0\0\2\1\0\2ab"
    assert sent.wrap(b"ab", V4)[4] == packet.KEEP
    found = packet.Xudp(V4).unwrap
    assert found(Reader(b"\0\4\0\0\2\1\0\2ab")) == (V4, b"ab")
    assert found(Reader(b"\0\4\0\0\2\0")) is None
    assert found(Reader(b"\0\4\0\0\4\1\0\2ab")) is None
    for end in (b"\0\4\0\0\3\0", b"\0\4\0\0\2\2"):
        with pytest.raises(EOFError):
            found(Reader(end))
    for wrong in (b"\0\3\0\0\2", b"\xff\xff", b"\0\4\0\0\1\0", b"\0\4\0\0\x09\0", b"\0\5\0\0\2\1\2\0\0"):
        with pytest.raises(PeerError):
            found(Reader(wrong))


def test_wrong_packet_addresses() -> None:
    for inside in (b"", b"\3", b"\1\xc0\0\2\1\0", b"\2" + bytes(17)):
        with pytest.raises(PeerError) as caught:
            packet.PacketAddress().unwrap(Reader(len(inside).to_bytes(2, "big") + inside))
        assert not isinstance(caught.value, Incomplete)


@given(st.sampled_from(sorted(FRAMINGS)), st.binary(max_size=80))
def test_any_bytes_are_a_frame_or_an_error(name: str, data: bytes) -> None:
    reader = Reader(data)
    framing = FRAMINGS[name][0]()
    try:
        while reader.left:
            framing.unwrap(reader)
    except (PeerError, EOFError):
        pass
