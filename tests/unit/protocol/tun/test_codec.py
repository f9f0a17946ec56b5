"""Packets of the device: scapy reads what we write, and writes what we read."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, ICMPerror, IPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6ParamProblem,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.packet import Raw

from gateway.protocol.tun import codec

HERE = {4: "192.0.2.1", 6: "2001:db8::1"}
THERE = {4: "198.51.100.7", 6: "2001:db8:2::7"}
ROUTER = {4: "203.0.113.1", 6: "2001:db8:3::1"}


def request(version, payload=b"some data", sequence=3, hops=64):
    if version == 4:
        return bytes(IP(src=HERE[4], dst=THERE[4], ttl=hops) / ICMP(type=8, id=77, seq=sequence) / payload)
    whole = IPv6(src=HERE[6], dst=THERE[6], hlim=hops) / ICMPv6EchoRequest(id=77, seq=sequence, data=payload)
    return bytes(whole)


def sums_hold(data):
    """Every checksum that scapy would write is the one that is there."""
    whole = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    fresh = whole.copy()
    for layer in (IP, ICMP, UDP, TCP):
        if layer in fresh:
            del fresh[layer].chksum
    for layer in (ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6DestUnreach, ICMPv6ParamProblem):
        if layer in fresh:
            del fresh[layer].cksum
    return bytes(fresh) == data


@pytest.mark.parametrize("version", [4, 6])
@given(payload=st.binary(max_size=600), sequence=st.integers(0, 65535))
def test_echo(version, payload, sequence):
    asked = codec.parse(request(version, payload, sequence, hops=9))
    assert asked is not None
    assert (str(asked.source), str(asked.destination), asked.hops) == (HERE[version], THERE[version], 9)
    said = codec.echo(asked)
    assert said == codec.Echo(77, sequence, payload)
    answer = codec.reply(asked, said)
    assert sums_hold(answer)
    whole = IP(answer) if version == 4 else IPv6(answer)
    assert (whole.src, whole.dst) == (THERE[version], HERE[version])
    got = whole[ICMP] if version == 4 else whole[ICMPv6EchoReply]
    assert (got.id, got.seq) == (77, sequence)
    assert codec.read_echo(answer[20 if version == 4 else 40 :], codec.ECHO_REPLY[version]) == said


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("what", ["PORT", "PROTOCOL", "PROHIBITED"])
@given(size=st.integers(0, 2000))
def test_errors(version, what, size):
    """They quote what they are about, as much as they may, in the name of its destination."""
    payload = bytes(size)
    if version == 4:
        data = bytes(IP(src=HERE[4], dst=THERE[4]) / UDP(sport=1, dport=2) / payload)
    else:
        data = bytes(IPv6(src=HERE[6], dst=THERE[6]) / UDP(sport=1, dport=2) / payload)
    about = codec.parse(data)
    kind, code = getattr(codec, what)[version]
    found = codec.error(about, kind, code)
    assert sums_hold(found)
    whole = IP(found) if version == 4 else IPv6(found)
    assert (whole.src, whole.dst) == (THERE[version], HERE[version])
    assert found[28 if version == 4 else 48 :] == data[: 548 if version == 4 else 1232]
    assert len(found) <= (576 if version == 4 else 1280)
    if version == 4:
        assert (whole[ICMP].type, whole[ICMP].code) == (kind, code)
        assert whole[IPerror].dst == THERE[4]


@pytest.mark.parametrize("version", [4, 6])
def test_an_error_about_our_request_becomes_one_about_the_clients(version):
    ours = request(version, b"x" * 20)
    if version == 4:
        message = bytes(IP(src=ROUTER[4], dst=HERE[4]) / ICMP(type=11, code=0) / ours)[20:]
    else:
        message = bytes(IPv6(src=ROUTER[6], dst=HERE[6]) / ICMPv6DestUnreach(code=3) / ours)[40:]
    destination, said = codec.quoted_echo(message, version)
    assert (str(destination), said.identifier, said.sequence) == (THERE[version], 77, 3)
    client = ip_address({4: "192.168.7.2", 6: "2001:db8:7::2"}[version])
    asked = codec.request(client, destination, said._replace(identifier=5))
    found = codec.error(asked, message[0], message[1], ip_address(ROUTER[version]))
    assert sums_hold(found)
    whole = IP(found) if version == 4 else IPv6(found)
    assert (whole.src, whole.dst) == (ROUTER[version], str(client))
    if version == 4:
        assert whole[IPerror].src == str(client)
        assert whole[ICMPerror].id == 5


@pytest.mark.parametrize("version", [4, 6])
@given(payload=st.binary(max_size=100))
def test_swapped_keeps_its_sums(version, payload):
    base = IP(src=HERE[4], dst=THERE[4]) if version == 4 else IPv6(src=HERE[6], dst=THERE[6])
    for above in (TCP(sport=5, dport=6, flags="S"), UDP(sport=5, dport=6)):
        found = codec.swapped(codec.parse(bytes(base / above / Raw(payload))))
        whole = IP(found) if version == 4 else IPv6(found)
        assert (whole.src, whole.dst) == (THERE[version], HERE[version])
        assert sums_hold(found)


def test_extension_headers_and_fragments():
    base = IPv6(src=HERE[6], dst=THERE[6])
    echo = ICMPv6EchoRequest(id=1, seq=2, data=b"x")
    deep = codec.parse(bytes(base / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / echo))
    assert deep.protocol == codec.ICMP6
    assert codec.echo(deep) == codec.Echo(1, 2, b"x")
    part = codec.parse(bytes(base / IPv6ExtHdrFragment(offset=0, m=1, id=9) / echo))
    assert part.fragment
    assert codec.echo(part) is None
    assert not codec.answerable(part)
    part = codec.parse(bytes(IP(src=HERE[4], dst=THERE[4], flags="MF") / ICMP() / b"x"))
    assert codec.echo(part) is None


@pytest.mark.parametrize(
    ("whole", "may"),
    [
        (IP(src=HERE[4], dst=THERE[4]) / UDP(), True),
        (IP(src=HERE[4], dst=THERE[4]) / ICMP(type=8), True),
        (IP(src=HERE[4], dst=THERE[4]) / ICMP(type=3), False),
        (IP(src=HERE[4], dst="224.0.0.251") / UDP(), False),
        (IP(src=HERE[4], dst="255.255.255.255") / UDP(), False),
        (IP(src="0.0.0.0", dst=THERE[4]) / UDP(), False),
        (IPv6(src=HERE[6], dst=THERE[6]) / UDP(), True),
        (IPv6(src=HERE[6], dst=THERE[6]) / ICMPv6DestUnreach(), False),
        (IPv6(src=HERE[6], dst="ff02::1:ff00:1") / ICMPv6ND_NS(), False),
        (IPv6(src="::", dst=THERE[6]) / UDP(), False),
    ],
)
def test_what_is_answered(whole, may):
    assert codec.answerable(codec.parse(bytes(whole))) == may


@given(st.binary(max_size=120))
def test_anything_at_all(data):
    for head in (b"", b"\x45", b"\x4f", b"\x60\0\0\0"):
        packet = codec.parse(head + data)
        if packet is not None:
            codec.echo(packet)
            codec.answerable(packet)
            codec.error(packet, 3, 3)
            codec.swapped(packet)
    for version in (4, 6):
        codec.quoted_echo(data, version)


def test_what_is_cut_is_nothing():
    for version in (4, 6):
        data = request(version)
        for size in range(len(data)):
            assert codec.parse(data[:size]) is None
        assert codec.parse(data + b"trailer").data == data


def test_a_parameter_problem_points_at_the_next_header():
    data = bytes(IPv6(src=HERE[6], dst=THERE[6], nh=253) / b"experiment")
    found = IPv6(codec.error(codec.parse(data), *codec.PROTOCOL[6]))
    assert found[ICMPv6ParamProblem].ptr == 6
