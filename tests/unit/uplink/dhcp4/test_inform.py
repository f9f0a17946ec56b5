"""DHCPINFORM on a fake clock: what is sent and when, what is believed, and when the names go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.fields import dec_hook
from gateway.uplink import plan
from gateway.uplink.dhcp4 import codec, inform
from gateway.uplink.dhcp4.codec import Message, Type
from gateway.uplink.dhcp4.inform import CLOSED, Here, Inquiry, Learned, Names, State
from gateway.uplink.dhcp4.machine import BROADCAST, Listen, Packet, Send, Tick
from gateway.uplink.options import UplinkOptions

MAC = bytes.fromhex("020000000001")
SERVER, MINE, OTHER = (IPv4Address(f"192.0.2.{last}") for last in (1, 77, 78))
SEARCH = b"\7example\3com\0\3sub\xc0\0"
HERE = Here(MINE, True, 7, MAC)
NAMES = Names(MINE, SERVER, (SERVER, IPv4Address("192.0.2.53")), ("example.com", "sub.example.com"))
HOUR = 3600
Answer = Callable[[Message], list[bytes]]


def ack(request: Message, **change: object) -> Message:
    options = {
        53: bytes([Type.ACK]), 54: SERVER.packed, 6: SERVER.packed + bytes([192, 0, 2, 53]), 15: b"example.net",
        119: SEARCH,
    }  # fmt: skip
    made = Message(2, request.xid, request.hardware, options, ciaddr=request.ciaddr)
    return replace(made, **change)  # type: ignore[arg-type]


def honest(request: Message) -> list[bytes]:
    return [codec.encode(ack(request))]


def silent(request: Message) -> list[bytes]:
    return []


class World:
    """Runs the machine; every INFORM is shown to ``answer``, whose replies arrive at once."""

    def __init__(self, answer: Answer = honest, random: float = 0.5) -> None:
        self.now = 1000.0
        self.answer = answer
        self.sent: list[tuple[float, Message, Send]] = []
        self.learned: list[Names | None] = []
        self.open: list[tuple[float, Listen]] = []
        self.inquiry = Inquiry(lambda: random)

    def do(self, event: inform.Event) -> None:
        for command in self.inquiry.handle(event, self.now):
            match command:
                case Listen():
                    self.open.append((self.now, command))
                case Learned():
                    self.learned.append(command.names)
                case Send():
                    assert self.open[-1][1] == Listen(False, command.source, False)
                    message = codec.decode(command.data)
                    self.sent.append((self.now, message, command))
                    for data in self.answer(message):
                        self.do(Packet(data, SERVER))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(100_000):
            if self.inquiry.deadline > end:
                self.now = end
                return
            self.now = max(self.now, self.inquiry.deadline)
            self.do(Tick())
        raise AssertionError("a storm")


def test_one_question_one_answer() -> None:
    world = World()
    world.do(HERE)
    assert not world.sent
    world.run(1)
    (at, message, send), = world.sent  # fmt: skip
    assert at == 1000.5
    assert (message.op, message.type, message.ciaddr, message.yiaddr) == (1, Type.INFORM, MINE, codec.ANY)
    assert (message.hardware, message.htype, message.flags, message.secs) == (MAC, 1, 0, 0)
    assert message.options == {53: b"\x08", 57: (1472).to_bytes(2, "big"), 55: bytes([6, 15, 119])}
    assert (send.source, send.destination, send.raw) == (MINE, BROADCAST, False)
    assert len(send.data) >= 300
    assert world.learned == [NAMES]
    assert world.open == [(1000.5, Listen(False, MINE, False)), (1000.5, CLOSED)]
    world.do(HERE)  # no news
    world.run(10.7 * HOUR)
    assert len(world.sent) == 1
    assert not world.inquiry.dropped


def test_the_answer_is_refreshed() -> None:
    world = World()
    world.do(HERE)
    world.run(49 * HOUR)
    times = [at for at, _, _ in world.sent]
    assert len(times) == 5
    assert all(10.8 * HOUR <= later - earlier <= 12 * HOUR for earlier, later in pairwise(times))
    assert world.learned == [NAMES]  # the same again is no change
    world.answer = lambda request: [codec.encode(ack(request, options={53: b"\5", 6: SERVER.packed}))]
    world.run(12 * HOUR)
    assert world.learned == [NAMES, Names(MINE, SERVER, (SERVER,))]
    world.answer = silent
    world.run(72 * HOUR)
    assert len(world.learned) == 2  # silence takes nothing away
    assert world.inquiry.names is not None


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_silence(random: float) -> None:
    """4 8 16 32 64 s, then a quarter of an hour, +-1 s each; port 68 is open for three seconds after each packet."""
    world = World(silent, random)
    world.do(HERE)
    world.run(2 * HOUR)
    times = [at for at, _, _ in world.sent]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    wanted = [4, 8, 16, 32, 64] + [900] * (len(gaps) - 5)
    assert len(gaps) >= 12
    assert all(abs(gap - pause) <= 1 for gap, pause in zip(gaps, wanted, strict=True))
    assert world.learned == []
    opened = [at for at, listen in world.open if listen.udp is not None]
    closed = [at for at, listen in world.open if listen == CLOSED]
    assert opened == times
    assert closed == pytest.approx([at + 3 for at in times])
    assert len({message.xid for _, message, _ in world.sent}) == 1
    assert [message.secs for _, message, _ in world.sent][:3] == [0, int(gaps[0]), int(gaps[0] + gaps[1])]


def bad(request: Message) -> list[bytes]:
    good = codec.encode(ack(request))
    return [
        b"", good[:200], good[:236] + b"nope" + good[240:],
        good + bytes(1473 - len(good)),
        codec.encode(ack(request, xid=request.xid ^ 1)),
        codec.encode(ack(request, hardware=bytes(6))), codec.encode(ack(request, htype=6)),
        codec.encode(ack(request, op=1)),
        codec.encode(ack(request, options={53: bytes([Type.NAK]), 54: SERVER.packed})),
        codec.encode(ack(request, options={53: bytes([Type.OFFER]), 6: SERVER.packed})),
        codec.encode(ack(request, options={6: SERVER.packed})),
        codec.encode(ack(request, yiaddr=OTHER)), codec.encode(ack(request, ciaddr=OTHER)),
    ]  # fmt: skip


def test_what_is_not_believed() -> None:
    world = World(bad)
    world.do(HERE)
    world.run(1)
    assert world.inquiry.state is State.ASKING
    assert world.learned == []
    assert world.inquiry.dropped == {
        "malformed": 3, "oversized": 1, "another xid": 1, "for another host": 3, "unexpected type": 3,
        "for another address": 2,
    }  # fmt: skip
    # None of it hurries or ends the question; a good answer after it counts.
    world.answer = lambda request: bad(request) + honest(request)
    world.run(5)
    assert len(world.sent) == 2
    assert world.learned == [NAMES]
    world.do(Packet(honest(world.sent[-1][1])[0], SERVER))
    assert world.inquiry.dropped["unasked"] == 1


def test_forms_of_an_answer() -> None:
    """Our address repeated in yiaddr and a lease time do no harm; option 15 stands in for 119; unusable is left out."""
    options = {53: b"\5", 51: bytes(4), 6: bytes([127, 0, 0, 1]) + SERVER.packed * 2 + bytes(4), 15: b"Example.NET."}
    world = World(lambda request: [codec.encode(ack(request, yiaddr=MINE, ciaddr=codec.ANY, options=options))])
    world.do(HERE)
    world.run(1)
    assert world.learned == [Names(MINE, SERVER, (SERVER,), ("example.net",))]
    world = World(lambda request: [codec.encode(ack(request, options={53: b"\5", 6: b"\1\2", 119: b"\xc0\0"}))])
    world.do(HERE)
    world.run(1)
    assert world.learned == [Names(MINE, SERVER)]  # an answer, though with nothing in it
    assert world.inquiry.dropped == {"option 6": 1, "option 119": 1}


def test_another_address_asks_anew() -> None:
    world = World()
    world.do(HERE)
    world.run(60)
    world.answer = silent
    world.do(replace(HERE, address=OTHER))
    assert world.learned == [NAMES, None]
    world.run(1)
    assert world.sent[-1][1].ciaddr == OTHER
    world.do(replace(HERE, address=None))
    assert world.inquiry.state is State.STOPPED
    assert world.open[-1][1] == CLOSED
    assert world.inquiry.deadline == math.inf
    sent = len(world.sent)
    world.run(24 * HOUR)
    assert len(world.sent) == sent


def test_carrier_asks_anew_and_keeps_the_names_meanwhile() -> None:
    world = World()
    world.do(HERE)
    world.run(60)
    world.do(replace(HERE, carrier=False))
    world.run(24 * HOUR)
    assert len(world.sent) == 1
    world.do(HERE)
    world.run(1)
    assert len(world.sent) == 2
    assert world.learned == [NAMES]
    world.answer = silent  # it is another network, with the same address
    world.do(replace(HERE, carrier=False))
    world.do(HERE)
    world.run(120)
    assert world.learned == [NAMES]
    world.run(15)
    assert world.learned == [NAMES, None]
    world.answer = honest
    world.run(900)
    assert world.learned == [NAMES, None, NAMES]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([HERE, replace(HERE, carrier=False), replace(HERE, address=OTHER), None]),
                          st.floats(0, 20), st.binary(max_size=400)), max_size=60), st.booleans())  # fmt: skip
def test_never_a_flood(steps: list[tuple[Here | None, float, bytes]], answered: bool) -> None:
    """Whatever the link and the network do: at most six packets a minute, and no open port without a question."""
    world = World(honest if answered else silent)
    for here, seconds, noise in steps:
        if here is not None:
            world.do(here)
        world.do(Packet(noise, SERVER))
        world.do(Packet(bytes([2]) + bytes(235) + codec.COOKIE + noise, SERVER))
        world.run(seconds)
        is_open = bool(world.open) and world.open[-1][1] != CLOSED
        assert is_open == (world.inquiry.state is State.ASKING)
    times = [at for at, _, _ in world.sent]
    assert all(times[n + 6] - times[n] >= 60 for n in range(len(times) - 6))


def options(**fields: object) -> UplinkOptions:
    return msgspec.convert({"interface": "wan"} | fields, UplinkOptions, dec_hook=dec_hook)


def test_what_comes_of_the_names() -> None:
    assert plan.dns(options(external=True), None, frozenset(), NAMES) == (NAMES.dns, NAMES.search)
    assert plan.dns(options(external=True), None, frozenset({ip_address("192.0.2.53")}), NAMES)[0] == (SERVER,)
    ours = replace(NAMES, dns=(MINE, SERVER))
    assert plan.dns(options(external=True), None, frozenset(), ours)[0] == (SERVER,)
    static = options(static={"address": ["192.0.2.77/24"], "dns": ["198.51.100.53"]})
    assert plan.dns(static, None, frozenset(), NAMES) == ((ip_address("198.51.100.53"),), ())


def test_the_address_that_asks() -> None:
    def of(*texts: str) -> list[plan.Address]:
        return [plan.Address("wan", ip_address(text), 24) for text in texts]

    assert plan.asking(of("2001:db8::1", "169.254.1.1", "192.0.2.77", "192.0.2.78")) == MINE
    assert plan.asking(of("2001:db8::1", "127.0.0.1")) is None
