"""The DHCP machine on a fake clock, against a scripted server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.uplink.dhcp4 import codec, lease, machine
from gateway.uplink.dhcp4.codec import Message, Route, Type
from gateway.uplink.dhcp4.lease import Lease
from gateway.uplink.dhcp4.machine import Changed, Config, Listen, Machine, Send, State

MAC = bytes.fromhex("020000000001")
SERVER = IPv4Address("192.0.2.1")
MINE = IPv4Address("192.0.2.9")
Answer = Callable[["World", Message], list[Message]]


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def reply(
    request: Message, kind: int, address: IPv4Address = MINE, server: IPv4Address | None = SERVER, **extra: bytes
) -> Message:
    options = {53: bytes([kind]), 51: u32(3600), 1: bytes([255, 255, 255, 0]), 3: SERVER.packed, 6: SERVER.packed}
    if server is not None:
        options[54] = server.packed
    options |= {int(name[1:]): data for name, data in extra.items()}
    return Message(2, request.xid, request.hardware, options, yiaddr=address if kind != Type.NAK else codec.ANY)


def honest(world: World, message: Message) -> list[Message]:
    kind = {Type.DISCOVER: Type.OFFER, Type.REQUEST: Type.ACK}.get(Type(message.type))
    return [reply(message, kind)] if kind else []


class World:
    """Runs the machine: every Send is shown to ``answer``, whose replies arrive at once."""

    def __init__(self, answer: Answer = honest, **config: Any) -> None:
        self.now = 1000.0
        self.answer = answer
        self.sent: list[tuple[float, Message, Send]] = []
        self.changes: list[tuple[float, Changed]] = []
        self.listens: list[Listen] = []
        self.machine = Machine(Config(**({"start_delay": 0.0} | config)), self.random)
        self.counter = 0
        self.middle = True

    def random(self) -> float:
        self.counter += 1
        return 0.5

    def do(self, event: machine.Event) -> None:
        queue = [event]
        while queue:
            commands = self.machine.handle(queue.pop(0), self.now)
            for command in commands:
                if isinstance(command, Listen):
                    self.listens.append(command)
                elif isinstance(command, Changed):
                    self.changes.append((self.now, command))
                else:
                    message = codec.decode(command.data)
                    self.sent.append((self.now, message, command))
                    queue += [machine.Packet(codec.encode(m), SERVER) for m in self.answer(self, message)]

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        for _ in range(100_000):
            if self.machine.deadline > end:
                self.now = end
                return
            assert self.machine.deadline >= self.now or self.machine.deadline > 0
            self.now = max(self.now, self.machine.deadline)
            self.do(machine.Tick())
        raise AssertionError("the deadline does not move")

    def up(self, remembered: Lease | None = None) -> None:
        self.do(machine.LinkUp(MAC, 1, remembered))

    def kinds(self) -> list[int]:
        return [message.type for _, message, _ in self.sent]


def silent(world: World, message: Message) -> list[Message]:
    return []


def test_dora() -> None:
    world = World(client_id=b"\x01" + MAC, hostname="router", vendor_class=b"v")
    world.up()
    assert world.machine.state is State.BOUND
    assert world.kinds() == [Type.DISCOVER, Type.REQUEST]
    _, request, send = world.sent[1]
    assert send.raw
    assert send.destination == machine.BROADCAST
    assert (request.options[50], request.options[54]) == (MINE.packed, SERVER.packed)
    assert (request.options[61], request.options[12], request.options[60]) == (b"\x01" + MAC, b"router", b"v")
    assert request.options[57] == (1472).to_bytes(2, "big")
    assert {1, 3, 6, 15, 26, 33, 51, 58, 59, 119, 121, 249} <= set(request.options[55])
    ((_, change),) = world.changes
    assert change.lease == Lease(
        MINE, 24, SERVER, 1000 + 1800, 1000 + 3150, 4600, (SERVER,), (SERVER,),
        routes=(Route(IPv4Network("0.0.0.0/0"), SERVER),),
    )  # fmt: skip
    # The packet socket is closed in BOUND and port 68 is held, deaf.
    assert world.listens[-1] == Listen(False, MINE, True)


def test_backoff_of_discover() -> None:
    world = World(silent)
    world.up()
    world.run(400)
    times = [at for at, _, _ in world.sent]
    assert [b - a for a, b in pairwise(times)][:6] == [4, 8, 16, 32, 64, 64]
    assert set(world.kinds()) == {Type.DISCOVER}
    assert [m.secs for _, m, _ in world.sent][:3] == [0, 4, 12]


@given(st.floats(0, 0.999))
def test_backoff_is_fuzzed_by_a_second(value: float) -> None:
    client = Machine(Config(start_delay=0), lambda: value)
    client.handle(machine.LinkUp(MAC), 0.0)
    assert 3 <= client.deadline <= 5


def test_start_delay() -> None:
    world = World(start_delay=10.0)
    world.up()
    assert not world.sent
    world.run(5)
    assert world.kinds() == [Type.DISCOVER, Type.REQUEST]


def test_request_unanswered_starts_over() -> None:
    world = World(lambda w, m: honest(w, m) if m.type == Type.DISCOVER else [])
    world.up()
    world.run(59)
    assert world.kinds() == [Type.DISCOVER] + [Type.REQUEST] * 4
    world.run(3)
    assert world.kinds()[5:] == [Type.DISCOVER, Type.REQUEST]


def test_renew_unicast_then_rebind_broadcast_then_expire() -> None:
    world = World()
    world.up()
    world.sent.clear()
    world.answer = silent
    world.run(4000)
    renew = [(at, send) for at, _, send in world.sent if at < 4150]
    assert [at - 1000 for at, _ in renew] == [1800, 2475, 2812.5, 2981.25, 3065.625, 3125.625]
    assert all(not send.raw and send.destination == SERVER and send.source == MINE for _, send in renew)
    rebind = [(at, m, send) for at, m, send in world.sent if 4150 <= at < 4600]
    assert [at - 1000 for at, _, _ in rebind] == [3150, 3375, 3487.5, 3547.5]
    assert all(send.raw and send.destination == machine.BROADCAST and send.source == MINE for _, _, send in rebind)
    assert all(m.ciaddr == MINE and not {50, 54} & m.options.keys() for _, m, _ in world.sent if m.type == Type.REQUEST)
    losses = [(at, c.reason) for at, c in world.changes if c.lease is None]
    assert losses == [(4600, "expired")]
    assert world.machine.state is State.SELECTING
    world.run(4000)
    assert len([c for _, c in world.changes if c.lease is None]) == 1
    assert {message.xid for _, message, _ in world.sent}  # each renewal has its own
    assert world.listens[-1] == Listen(True, None, True)


def test_lease_counts_from_the_request() -> None:
    """A REQUEST answered at its second transmission: the lease began with the first."""
    world = World(lambda w, m: honest(w, m) if m.type == Type.DISCOVER or w.now > 1000 else [])
    world.up()
    world.run(10)
    assert world.machine.lease is not None
    assert world.changes[0][0] == 1004
    assert world.machine.lease.expiry == 4600


def test_renewal_changes_are_published() -> None:
    world = World()
    world.up()
    world.answer = lambda w, m: [reply(m, Type.ACK, _6=bytes([192, 0, 2, 2]))]
    world.run(1900)
    assert world.changes[-1][1].lease is not None
    assert world.changes[-1][1].lease.dns == (IPv4Address("192.0.2.2"),)
    assert world.changes[-1][1].lease.expiry == 2800 + 3600
    assert world.machine.state is State.BOUND


REMEMBERED = Lease(MINE, 24, SERVER, 2000, 3000, 4000)


def test_init_reboot() -> None:
    world = World()
    world.up(REMEMBERED)
    assert world.kinds() == [Type.REQUEST]
    _, message, _ = world.sent[0]
    assert message.options[50] == MINE.packed
    assert 54 not in message.options
    assert message.ciaddr == codec.ANY
    assert world.machine.state is State.BOUND


def test_init_reboot_unanswered_uses_the_lease_and_discovers() -> None:
    world = World(silent)
    world.up(REMEMBERED)
    assert not world.changes
    world.run(14)
    assert world.changes[0][1] == Changed(REMEMBERED, "remembered")
    assert world.kinds() == [Type.REQUEST, Type.REQUEST, Type.DISCOVER]
    assert world.sent[-1][1].options[50] == MINE.packed
    world.run(4000)
    assert [(at, c.reason) for at, c in world.changes[1:]] == [(4000, "expired")]


def test_init_reboot_refused() -> None:
    world = World(lambda w, m: [reply(m, Type.NAK)] if 54 not in m.options and m.type == Type.REQUEST else honest(w, m))
    world.up(REMEMBERED)
    assert world.machine.state is State.INIT
    world.run(2)
    assert world.kinds() == [Type.REQUEST, Type.DISCOVER, Type.REQUEST]
    assert world.machine.state is State.BOUND


def test_remembered_but_over() -> None:
    world = World()
    world.up(replace(REMEMBERED, expiry=999.0))
    assert world.kinds() == [Type.DISCOVER, Type.REQUEST]


def test_carrier_down_and_up_keeps_the_lease() -> None:
    world = World()
    world.up()
    world.do(machine.LinkDown())
    assert world.machine.lease is not None
    assert world.listens[-1] == Listen(False, MINE, True)
    world.run(60)
    world.up()
    assert world.kinds() == [Type.DISCOVER, Type.REQUEST, Type.REQUEST]
    assert world.sent[-1][1].options[50] == MINE.packed
    assert [c.lease is None for _, c in world.changes] == [False, False]
    world.do(machine.LinkDown())
    world.run(5000)
    assert world.changes[-1][1] == Changed(None, "expired")
    assert len(world.changes) == 3


def test_another_card_loses_the_lease() -> None:
    world = World()
    world.up()
    world.do(machine.LinkDown())
    world.do(machine.LinkUp(bytes(6)))
    assert [c.reason for _, c in world.changes] == ["bound", "another hardware address", "bound"]


def test_nak_storm() -> None:
    world = World(lambda w, m: [reply(m, Type.OFFER if m.type == Type.DISCOVER else Type.NAK)])
    world.up()
    world.run(8)
    assert world.kinds().count(Type.DISCOVER) < 10
    world.run(600)
    times = [at for at, m, _ in world.sent if m.type == Type.DISCOVER]
    gaps = [b - a for a, b in pairwise(times)]
    assert gaps[:7] == [1, 2, 4, 8, 16, 32, 60]
    assert not world.changes


def test_pause_starts_anew_after_an_ack() -> None:
    world = World(lambda w, m: [reply(m, Type.OFFER if m.type == Type.DISCOVER else Type.NAK)])
    world.up()
    world.run(20)
    world.answer = honest
    world.run(40)
    assert world.machine.state is State.BOUND
    world.answer = lambda w, m: [reply(m, Type.NAK)]
    world.do(machine.Renew())
    assert world.machine.deadline == world.now + 1
    assert world.changes[-1][1] == Changed(None, "refused")


def test_flapping_carrier_is_rate_limited() -> None:
    world = World(lambda w, m: [])
    world.up(REMEMBERED)
    for _ in range(500):
        world.now += 0.1
        world.do(machine.LinkDown())
        world.up()
    assert len(world.sent) == machine.RATE
    assert world.machine.dropped["own packet over the rate"] > 400


def strange(kind: int, **change: Any) -> Callable[[Message], Message]:
    extra = change.pop("extra", {})
    server = change.pop("server", SERVER)
    return lambda m: replace(reply(m, kind, server=server, **extra), **change)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (strange(Type.OFFER, xid=1), "another xid"),
        (strange(Type.OFFER, op=1), "for another host"),
        (strange(Type.OFFER, hardware=bytes(6)), "for another host"),
        (strange(Type.OFFER, htype=6), "for another host"),
        (strange(Type.OFFER, options={}), "unexpected type"),  # BOOTP
        (strange(9), "unexpected type"),  # FORCERENEW
        (strange(200), "unexpected type"),
        (strange(Type.ACK), "unexpected type"),
        (strange(Type.NAK), "unexpected type"),
        (strange(Type.OFFER, yiaddr=codec.ANY), "offer without what is needed"),
        (strange(Type.OFFER, yiaddr=IPv4Address("255.255.255.255")), "offer without what is needed"),
    ],
)
def test_strange_offers_are_dropped(make: Callable[[Message], Message], reason: str) -> None:
    world = World(lambda w, m: [make(m)])
    world.up()
    assert world.machine.state is State.SELECTING
    assert world.machine.dropped == {reason: 1}
    assert len(world.sent) == 1
    world.answer = honest
    world.run(5)
    assert world.machine.state is State.BOUND


def test_foreign_nak_and_ack_are_ignored() -> None:
    other = IPv4Address("192.0.2.66")

    def answer(world: World, message: Message) -> list[Message]:
        if message.type == Type.DISCOVER:
            return honest(world, message)
        foreign = [reply(message, Type.NAK, server=other), reply(message, Type.ACK, server=other)]
        return foreign if len(world.sent) < 4 else honest(world, message)

    world = World(answer)
    world.up()
    assert world.machine.state is State.REQUESTING
    world.run(20)
    assert world.machine.state is State.BOUND
    assert world.machine.dropped["foreign server"] == 4
    world.answer = lambda w, m: [reply(m, Type.NAK, server=other)]
    world.do(machine.Renew())
    assert world.machine.state is State.RENEWING
    assert world.machine.lease is not None


def test_unasked_packets_in_bound() -> None:
    world = World()
    world.up()
    request = world.sent[-1][1]
    for kind in (Type.NAK, Type.ACK, Type.OFFER, 9):
        world.do(machine.Packet(codec.encode(reply(request, kind)), SERVER))
    assert world.machine.state is State.BOUND
    assert len(world.changes) == 1


@pytest.mark.parametrize(
    ("options", "t1", "t2", "expiry"),
    [
        ({51: u32(0)}, 15, 26.25, 30),
        ({51: u32(1)}, 15, 26.25, 30),
        ({51: u32(0xFFFFFFFF)}, math.inf, math.inf, math.inf),
        ({51: u32(0x90000000)}, 0x48000000, 0x7E000000, 0x90000000),
        ({51: u32(120), 58: u32(5), 59: u32(12)}, 5, 12, 120),
        ({51: u32(120), 58: u32(60), 59: u32(12)}, 60, 105, 120),  # T2 < T1
        ({51: u32(120), 58: u32(0), 59: u32(12)}, 60, 105, 120),
        ({51: u32(120), 58: u32(60), 59: u32(120)}, 60, 105, 120),
        ({51: b"\0\1"}, 1800, 3150, 3600),  # not four bytes
    ],
)
def test_times(options: dict[int, bytes], t1: float, t2: float, expiry: float) -> None:
    world = World()
    world.answer = lambda w, m: [
        reply(m, Type.OFFER if m.type == Type.DISCOVER else Type.ACK, **{f"_{k}": v for k, v in options.items()})
    ]
    world.up()
    got = world.machine.lease
    assert got is not None
    assert (got.t1 - 1000, got.t2 - 1000, got.expiry - 1000) == (t1, t2, expiry)


def test_bad_options_cost_only_themselves() -> None:
    world = World(
        lambda w, m: [
            reply(
                m,
                Type.OFFER if m.type == Type.DISCOVER else Type.ACK,
                _1=b"\xff\xff\xff",
                _121=b"\x21",
                _119=b"\xc0\x00",
                _26=b"\0\x44",
            )
        ]
    )
    world.up()
    got = world.machine.lease
    assert got is not None
    assert (got.prefix, got.mtu, got.search) == (24, 0, ())  # classful
    assert got.routes == (Route(IPv4Network("0.0.0.0/0"), SERVER),)  # a broken 121 does not hide option 3
    assert world.machine.dropped == {"option 1": 1, "option 121": 1, "option 119": 1}


def test_classless_routes_win() -> None:
    def answer(world: World, message: Message) -> list[Message]:
        kind = Type.OFFER if message.type == Type.DISCOVER else Type.ACK
        return [reply(message, kind, _121=bytes([8, 10, 192, 0, 2, 5]), _33=bytes([10, 0, 0, 0, 192, 0, 2, 7]))]

    inner = Route(IPv4Network("10.0.0.0/8"), IPv4Address("192.0.2.5"))
    world = World(answer)
    world.up()
    assert world.machine.lease is not None
    assert world.machine.lease.routes == (inner,)
    world = World(answer, add_router=True)
    world.up()
    assert world.machine.lease is not None
    assert world.machine.lease.routes == (inner, Route(IPv4Network("0.0.0.0/0"), SERVER))


def test_ack_with_another_address_and_server_without_id() -> None:
    def answer(world: World, message: Message) -> list[Message]:
        if message.type == Type.DISCOVER:
            return [reply(message, Type.OFFER, server=None)]
        return [reply(message, Type.ACK, IPv4Address("192.0.2.77"), server=codec.ANY)]

    world = World(answer)
    world.up()
    assert world.machine.lease is not None
    assert world.machine.lease.address == IPv4Address("192.0.2.77")
    assert world.machine.lease.server == SERVER  # the packet's source


def test_collect_prefers_what_we_had() -> None:
    def answer(world: World, message: Message) -> list[Message]:
        if message.type == Type.DISCOVER:
            return [
                reply(message, Type.OFFER, IPv4Address("192.0.2.50"), IPv4Address("192.0.2.2")),
                reply(message, Type.OFFER),
            ]
        return honest(world, message) if 54 in message.options else []

    world = World(answer, collect=2.0)
    world.up(REMEMBERED)
    world.run(20)
    assert world.sent[-1][1].options[54] == SERVER.packed
    assert world.machine.state is State.BOUND


def test_allow_deny_required() -> None:
    for config in (
        {"deny": frozenset({SERVER})},
        {"allow": frozenset({IPv4Address("192.0.2.2")})},
        {"required": frozenset({121})},
    ):
        world = World(**config)
        world.up()
        assert world.machine.state is State.SELECTING
        assert len(world.sent) == 1


def test_release() -> None:
    world = World(client_id=b"\0x")
    world.up()
    world.do(machine.Release())
    _, message, send = world.sent[-1]
    assert message.type == Type.RELEASE
    assert (message.ciaddr, message.options[54], message.options[61]) == (MINE, SERVER.packed, b"\0x")
    assert not send.raw
    assert send.destination == SERVER
    assert world.changes[-1][1] == Changed(None, "released")
    assert world.machine.deadline == math.inf
    assert world.listens[-1] == Listen(False, None, True)


def test_stop_keeps_the_lease() -> None:
    world = World()
    world.up()
    world.do(machine.Stop())
    assert world.kinds() == [Type.DISCOVER, Type.REQUEST]
    assert len(world.changes) == 1


@settings(max_examples=300)
@given(st.data())
def test_never_raises_and_never_storms(data: st.DataObject) -> None:
    """Option soup, garbage, ticks and links in any order: no exception, a bounded number of packets."""
    world = World(silent)
    world.up(data.draw(st.sampled_from([None, REMEMBERED])))
    for _ in range(data.draw(st.integers(1, 25))):
        world.now += data.draw(st.floats(0, 50))
        what = data.draw(st.integers(0, 5))
        if what == 0:
            world.do(machine.Tick())
        elif what == 1:
            world.do(machine.Packet(data.draw(st.binary(max_size=400)), SERVER))
        elif what == 2:
            world.do(data.draw(st.sampled_from([machine.LinkDown(), machine.LinkUp(MAC), machine.Renew()])))
        else:
            request = world.sent[-1][1]
            soup = data.draw(st.dictionaries(st.integers(1, 254), st.binary(max_size=40), max_size=8))
            kind = data.draw(st.sampled_from([2, 5, 6, 9]))
            message = replace(reply(request, kind), xid=world.machine._xid)
            wire = codec.encode(replace(message, options={**soup, **message.options} if what < 5 else soup))
            world.do(machine.Packet(wire, SERVER))
        got = world.machine.lease
        assert got is None or world.now < got.t1 + 1 or got.t1 < got.t2 < got.expiry or math.isinf(got.expiry)
    times = [at for at, _, _ in world.sent]
    assert all(b - a >= 60 for a, b in zip(times, times[machine.RATE :], strict=False))


def test_file() -> None:
    for kept in (REMEMBERED, replace(REMEMBERED, t1=math.inf, t2=math.inf, expiry=math.inf), replace(
        REMEMBERED, dns=(SERVER,), routers=(SERVER,), domain="example.com", search=("a.example",), mtu=1400,
        routes=(Route(IPv4Network("0.0.0.0/0"), SERVER), Route(IPv4Network("192.0.2.99/32"), None)),
    )):  # fmt: skip
        text = lease.to_json(kept, MAC, "boot", 1000.0, 5e9)
        assert lease.from_json(text, MAC, "boot", 1500.0, 99.0) == kept  # same boot: the wall clock may jump
        after = lease.from_json(text, MAC, "another", 10.0, 5e9 + 100)
        assert after is not None
        assert after.expiry == kept.expiry - 1000 - 100 + 10
        assert lease.from_json(text, bytes(6), "boot", 1500.0, 99.0) is None
    text = lease.to_json(REMEMBERED, MAC, "boot", 1000.0, 5e9)
    assert lease.from_json(text, MAC, "boot", 4000.0, 5e9) is None
    for size in range(len(text)):
        assert lease.from_json(text[:size], MAC, "boot", 1500.0, 5e9) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_corrupt_file(junk: Any) -> None:
    good = json.loads(lease.to_json(REMEMBERED, MAC, "boot", 1000.0, 5e9))
    for key in good:
        lease.from_json(json.dumps(good | {key: junk}), MAC, "boot", 1500.0, 5e9)
    assert lease.from_json(json.dumps(junk), MAC, "boot", 1500.0, 5e9) is None
