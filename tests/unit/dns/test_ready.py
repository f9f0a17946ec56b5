"""Answers of this second, and the router that fills them."""

import asyncio
from types import SimpleNamespace

import dns.message
import dns.rrset

from gateway.core.address import Address
from gateway.core.flow import Flow
from gateway.dns import ready
from gateway.dns.options import decode_section
from gateway.dns.router import Router

HOST = b"\xc0\x00\x02\x07"


class Names:
    async def exchange(self, query):
        made = dns.message.make_response(dns.message.from_wire(query))
        owner = made.question[0].name
        made.answer.append(dns.rrset.from_text(owner, 30, "IN", "A", "192.0.2.99"))
        return made.to_wire()

    async def close(self):
        pass


class Sink:
    def __init__(self):
        self.names = []

    def learn(self, name, client, addresses, targets=()):
        self.names.append(name)

    def owners(self, address, client):
        return ()


def flow(host="192.0.2.7"):
    return Flow("udp", "lan", "dns", Address.of(host, 4000), Address.of("192.0.2.1", 53))


def query(name="a.test", ident=1):
    return dns.message.make_query(name, "A", id=ident).to_wire()


def filled(now, *, names=("a.test",), sink=None, **section):
    section = {"servers": [{"type": "hosts", "tag": "up"}], **section}
    router = Router(decode_section(section), {"up": Names()}, SimpleNamespace(), {}, sink, lambda: now[0])
    for name in names:
        assert asyncio.run(router.exchange(query(name), flow()))
    return router


def test_stands_until_the_ttl_is_due():
    now = [100.25]
    router = filled(now)
    assert router.ready.get(HOST, query()[2:], now[0]) is None  # the cache was not asked yet
    for start, left in ((100.5, 30), (101.5, 29), (129.9, 1)):
        now[0] = start
        whole = router.hit(query(ident=7), flow())
        kept = router.ready.get(HOST, query()[2:], start)
        assert kept == whole[2:]
        assert dns.message.from_wire(whole).answer[0].ttl == left
    assert router.ready.get(HOST, query()[2:], 129.9) is not None
    assert router.ready.get(HOST, query()[2:], 130.25) is None
    assert router.hit(query(), flow()) is not None
    now[0] = 130.25
    assert router.hit(query(), flow()) is None


def test_each_client_is_told_and_the_last_name_counts():
    now, sink = [100.0], Sink()
    router = filled(now, names=("a.test", "b.test"), sink=sink)
    for name in ("a.test", "b.test"):
        assert router.hit(query(name), flow())
    assert router.ready.get(b"\xc0\x00\x02\x08", query()[2:], 100.0) is None
    learned = len(sink.names)
    for name in ("a.test", "b.test", "a.test"):
        assert router.ready.get(HOST, query(name)[2:], 100.5)
        client, address = flow().source.ip, Address.of("192.0.2.99", 0).ip
        assert router.learned(address, client)[0] == name
    assert len(sink.names) == learned


def test_rules_that_ask_who_asks_keep_nothing_here():
    rules = [{"source_ip_cidr": "192.0.2.8", "action": "reject"}]
    now = [100.0]
    for section in ({"rules": rules}, {"independent_cache": True}, {"disable_cache": True}):
        router = filled(now, **section)
        router.hit(query(), flow())
        assert router.ready.get(HOST, query()[2:], 100.0) is None


def test_forgets_with_the_cache_and_is_bounded(monkeypatch):
    now = [100.0]
    router = filled(now)
    assert router.hit(query(), flow())
    router.clear()
    assert router.ready.get(HOST, query()[2:], 100.0) is None
    monkeypatch.setattr(ready, "ITEMS", 3)
    table = ready.Ready(lambda: 0.0)
    for number in range(10):
        table.keep(flow().source.ip, bytes([0, 0, number]), b"00x", 1.0, "a", ())
        assert sum(map(len, table._clients.values())) == table._count <= 3
    table.keep(flow().source.ip, b"00long", bytes(ready.LONGEST + 1), 1.0, "a", ())
    assert table.get(HOST, b"long", 0.0) is None
