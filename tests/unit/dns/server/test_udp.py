"""DNS server ``udp`` behind a detour made of Python: what it believes, and what it does when nobody answers."""

import asyncio
from types import SimpleNamespace

import dns.flags
import dns.message
import pytest

from gateway.core.address import Address
from gateway.core.errors import DialError, PeerError
from gateway.dns import message
from gateway.dns.server import udp

SERVER = Address.of("192.0.2.53", 53)


def answer(query, *, text="192.0.2.1", name=None):
    read = dns.message.from_wire(query)
    made = dns.message.make_response(read)
    if name is not None:
        made.question[0].name = dns.name.from_text(name)
    made.answer.append(dns.rrset.from_text(made.question[0].name, 60, "IN", "A", text))
    return made.to_wire()


class Conn:
    def __init__(self, outbound):
        self.outbound = outbound
        self.closed = False

    def start(self, receiver):
        self.receive = receiver

    def send(self, data, destination, segment=0):
        assert destination == SERVER
        self.outbound.sent.append(bytes(data))
        self.outbound.behave(self, bytes(data))

    def close(self):
        self.closed = True


class Stream:
    def __init__(self, pieces):
        self.pieces = pieces

    async def write(self, data):
        assert int.from_bytes(data[:2], "big") == len(data) - 2
        self.left = self.pieces(bytes(data[2:]))

    async def read(self, limit=65536):
        part, self.left = self.left[:1], self.left[1:]
        return part

    def close(self):
        self.left = b""


class Outbound:
    def __init__(self, behave, pieces=None):
        self.behave = behave
        self.pieces = pieces
        self.sent = []
        self.conns = []

    async def open_packets(self, flow, destination):
        self.conns.append(Conn(self))
        return self.conns[-1]

    async def connect(self, flow, destination):
        assert destination == SERVER
        return Stream(self.pieces)


def run(outbound, body=None, count=1):
    async def main():
        wiring = SimpleNamespace(outbounds={"up": outbound})
        server = udp.Server("dns", udp.Options(server="192.0.2.53", detour="up"), wiring)
        out = [await server.exchange(message.query(f"n{n}.example", 1, 7)) for n in range(count)]
        await server.close()
        return out

    found = asyncio.run(main())
    assert all(conn.closed for conn in outbound.conns)
    return found


def addresses(data):
    assert data[:2] == b"\0\7"
    return [str(ip) for ip, _ in message.addresses(data)]


def test_only_the_right_answer_counts():
    def behave(conn, query):
        evil = answer(query, text="198.51.100.66")
        for data, peer in (
            (evil, Address.of("192.0.2.54", 53)),
            (evil, Address.of("192.0.2.53", 5353)),
            (bytes([evil[0] ^ 1]) + evil[1:], SERVER),
            (answer(query, text="198.51.100.66", name="other.example"), SERVER),
            (query, SERVER),
            (b"", SERVER),
            (evil[:5], SERVER),
        ):
            conn.receive(data, peer, 0)
        right = answer(query)
        conn.receive(bytes(len(right)) + right, SERVER, len(right))  # two datagrams in one

    assert addresses(run(Outbound(behave))[0]) == ["192.0.2.1"]


def test_ids_and_ports_change():
    outbound = Outbound(lambda conn, query: conn.receive(answer(query), SERVER, 0))
    run(outbound, count=udp.QUERIES + 1)
    assert len(outbound.conns) == 2
    assert len({query[:2] for query in outbound.sent}) > udp.QUERIES // 2


def test_asks_again_and_gives_up(monkeypatch):
    monkeypatch.setattr(udp, "WAITS", (0.01, 0.01, 60.0))
    outbound = Outbound(lambda conn, query: len(outbound.sent) > 2 and conn.receive(answer(query), SERVER, 0))
    assert addresses(run(outbound)[0]) == ["192.0.2.1"]
    assert len(outbound.sent) == len(outbound.conns) == 3
    monkeypatch.setattr(udp, "WAITS", (0.01, 0.01))
    with pytest.raises(DialError, match="no answer"):
        run(Outbound(lambda conn, query: None))


def short(conn, query):
    made = dns.message.make_response(dns.message.from_wire(query))
    made.flags |= dns.flags.TC
    conn.receive(made.to_wire(), SERVER, 0)


def test_truncated_is_asked_over_tcp_and_read_byte_by_byte():
    def pieces(query):
        data = answer(query)
        return len(data).to_bytes(2, "big") + data

    assert addresses(run(Outbound(short, pieces))[0]) == ["192.0.2.1"]


@pytest.mark.parametrize("cut", [0, 1, 2, 10])
def test_cut_tcp_answers(cut):
    with pytest.raises(PeerError):
        run(Outbound(short, lambda query: (b"\0\x40" + answer(query))[:cut]))
    with pytest.raises(PeerError, match="another query"):
        run(Outbound(short, lambda query: b"\0\x0c" + bytes(12)))
