"""The router with servers made of Python."""

import asyncio
from ipaddress import ip_address, ip_network
from types import SimpleNamespace

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.address import Address
from gateway.core.errors import ConfigError, DialError, PeerError
from gateway.core.flow import Flow
from gateway.dns import message
from gateway.dns.options import decode_section
from gateway.dns.policy import Policy
from gateway.dns.router import Router

LAN = Address.of("192.0.2.1", 53)


def client(host="192.0.2.7", network="udp"):
    return Flow(network, "lan", "dns", Address.of(host, 4000), LAN)


class Server:
    """Answers from a table of name to record texts; counts what it was asked."""

    def __init__(self, ttl=60, **table):
        self.table = {name.replace("_", "."): texts for name, texts in table.items()}
        self.ttl = ttl
        self.asked = []
        self.gate = None
        self.before = None

    async def exchange(self, query):
        read = dns.message.from_wire(query)
        name = str(read.question[0].name).rstrip(".").lower()
        self.asked.append(name)
        if self.before:
            await self.before()
        if self.gate:
            await self.gate.wait()
        made = dns.message.make_response(read)
        kind = dns.rdatatype.to_text(read.question[0].rdtype)
        texts = self.table.get(name)
        if texts is None:
            made.set_rcode(dns.rcode.NXDOMAIN)
        else:
            texts = [text for text in texts if {"A": ".", "AAAA": ":"}.get(kind, " ") in text]
            if texts:
                made.answer.append(dns.rrset.from_text(read.question[0].name, self.ttl, "IN", kind, *texts))
        return made.to_wire(max_size=65535)

    async def close(self):
        pass


class Dead(Server):
    async def exchange(self, query):
        raise DialError("nobody there")


class Sink:
    def __init__(self):
        self.learned = []
        self.targets = []
        self.known = {}

    def learn(self, name, client, addresses, targets=()):
        self.learned.append((name, str(client), [(str(ip), ttl) for ip, ttl in addresses]))
        self.targets += targets

    def owners(self, address, client):
        return self.known.get(str(address), ())


class Within:
    """Fake addresses."""

    def __init__(self, network):
        self._network = ip_network(network)

    def __contains__(self, ip):
        return ip in self._network


def router(servers, clock=lambda: 100.0, sink=None, **section):
    tags = [{"type": "hosts", "tag": tag} for tag in servers]
    wiring = SimpleNamespace(rejections=None, fakes=Within("198.18.0.0/15"))
    return Router(decode_section({"servers": tags, **section}), servers, wiring, {}, sink, clock)


def ask(made, name, kind="A", flow=None, **more):
    answer = asyncio.run(made.exchange(dns.message.make_query(name, kind, **more).to_wire(), flow or client()))
    return answer and dns.message.from_wire(answer)


def test_asks_once_and_counts_down():
    now = [100.0]
    server = Server(a_example=["192.0.2.1"])
    made = router({"one": server}, lambda: now[0])
    assert ask(made, "a.example").answer[0].ttl == 60
    now[0] += 10
    assert ask(made, "A.Example").answer[0].ttl == 50
    assert server.asked == ["a.example"]


def test_cookies_stay_between_client_and_us():
    server = Server(a_example=["192.0.2.1"])
    made = router({"one": server})
    for cookie in (b"12345678", b"abcdefgh"):
        ask(made, "a.example", options=[dns.edns.GenericOption(10, cookie)])
    assert server.asked == ["a.example"]
    for _ in range(2):  # but a client's subnet is part of the question
        ask(made, "a.example", options=[dns.edns.ECSOption("192.0.2.0", 24)])
    assert len(server.asked) == 3


def test_disable_cache():
    server = Server(a_example=["192.0.2.1"])
    made = router({"one": server}, disable_cache=True)
    ask(made, "a.example")
    ask(made, "a.example")
    assert len(server.asked) == 2


def test_the_same_question_goes_out_once():
    server = Server(a_example=["192.0.2.1"])

    async def main():
        server.gate, arrived = asyncio.Event(), asyncio.Event()
        server.before = lambda: asyncio.sleep(0, arrived.set())
        made = router({"one": server})
        queries = [dns.message.make_query(name, "A", id=n) for n, name in enumerate(("a.example", "A.example") * 20)]
        tasks = [asyncio.ensure_future(made.exchange(query.to_wire(), client())) for query in queries]
        await arrived.wait()
        tasks[0].cancel()  # whoever goes first does not take the others along
        server.gate.set()
        answers = await asyncio.gather(*tasks[1:])
        for query, answer in zip(queries[1:], answers, strict=True):
            assert query.is_response(dns.message.from_wire(answer))
            assert answer[12:22] == query.to_wire()[12:22]

    asyncio.run(main())
    assert server.asked == ["a.example"]


def test_rules_choose_and_reject():
    one, two = Server(a_example=["192.0.2.1"]), Server(b_test=["192.0.2.2"])
    made = router({"one": one, "two": two}, rules=[
        {"query_type": "HTTPS", "action": "reject"},
        {"domain": "ads.example", "action": "reject", "method": "drop"},
        {"domain_suffix": "test", "server": "two", "rewrite_ttl": 5},
    ])  # fmt: skip
    assert ask(made, "a.example", "HTTPS").rcode() == dns.rcode.REFUSED
    assert ask(made, "ads.example") is None
    assert ask(made, "b.test").answer[0].ttl == 5
    assert ask(made, "a.example").answer[0][0].address == "192.0.2.1"
    assert (one.asked, two.asked) == (["a.example"], ["b.test"])


def test_clients_with_rules_of_their_own_share_nothing():
    one, two = Server(a_example=["192.0.2.1"]), Server(a_example=["192.0.2.2"])
    made = router({"one": one, "two": two}, rules=[{"source_ip_cidr": "192.0.2.7", "server": "two"}])
    for _ in range(2):
        assert ask(made, "a.example").answer[0][0].address == "192.0.2.2"
        assert ask(made, "a.example", flow=client("192.0.2.8")).answer[0][0].address == "192.0.2.1"
    assert len(one.asked) == len(two.asked) == 1


def test_address_rules_go_on_where_the_answer_is_another():
    one, two = Server(a_example=["192.0.2.1"]), Server(a_example=["198.51.100.1"], b_example=["203.0.113.1"])
    made = router({"one": one, "two": two}, rules=[{"ip_cidr": "203.0.113.0/24", "server": "two"}])
    assert ask(made, "a.example").answer[0][0].address == "192.0.2.1"
    assert ask(made, "b.example").answer[0][0].address == "203.0.113.1"


def test_a_dead_server_is_servfail_and_not_kept():
    made = router({"one": Dead()})
    assert ask(made, "a.example").rcode() == dns.rcode.SERVFAIL
    made._servers["one"] = Server(a_example=["192.0.2.1"])
    assert ask(made, "a.example").rcode() == dns.rcode.NOERROR


def test_strategy_leaves_the_other_family_empty():
    server = Server(a_example=["192.0.2.1", "2001:db8::1"])
    made = router({"one": server}, strategy="ipv4_only")
    read = ask(made, "a.example", "AAAA")
    assert (read.rcode(), read.answer, server.asked) == (0, [], [])


def test_learned_before_the_answer_is_out_and_on_hits():
    now, sink = [100.0], Sink()
    made = router({"one": Server(a_example=["192.0.2.1"], b_example=["192.0.2.1"])}, lambda: now[0], sink)
    ask(made, "a.example")
    now[0] += 10
    ask(made, "a.example", flow=client("192.0.2.8"))
    ask(made, "b.example")
    assert sink.learned == [
        ("a.example", "192.0.2.7", [("192.0.2.1", 60)]), ("a.example", "192.0.2.8", [("192.0.2.1", 50)]),
        ("b.example", "192.0.2.7", [("192.0.2.1", 60)]),
    ]  # fmt: skip
    ip = ip_address("192.0.2.1")
    ask(made, "b.example")
    ask(made, "b.example")
    assert len(sink.learned) == 4  # said already
    ask(made, "a.example")
    ask(made, "b.example")
    assert len(sink.learned) == 5  # b was said in this second; that it came last is known below
    assert made.learned(ip, ip_address("192.0.2.7")) == ("b.example", "a.example")
    assert made.learned(ip, ip_address("192.0.2.8")) == ("a.example", "b.example")
    now[0] += 1000
    assert made.learned(ip, ip_address("192.0.2.8")) == ()


def test_an_answer_that_is_kept_for_ever_is_told_for_ever():
    now, sink = [100.0], Sink()
    made = router({"one": Server(a_example=["192.0.2.1"])}, lambda: now[0], sink, disable_expire=True)
    for later in (0, 100, 600, 3600):
        now[0] += later
        for _ in range(2):
            assert ask(made, "a.example").answer[0].ttl == (0 if later else 60)
    assert [ttl for _, _, [(_, ttl)] in sink.learned] == [60, 60, 0, 0, 0], "twice by its server, once a second by us"


def test_a_sink_that_comes_later():
    made, sink = router({"one": Server(a_example=["192.0.2.1"])}), Sink()
    ask(made, "a.example")
    made.teach(sink)
    ask(made, "a.example")
    assert len(sink.learned) == 1
    made.teach(None)
    ask(made, "a.example")
    assert len(sink.learned) == 1


@pytest.mark.parametrize(("network", "edns", "whole"), [("udp", False, False), ("udp", 4096, True),
                                                       ("tcp", False, True)])  # fmt: skip
def test_answers_fit_the_client(network, edns, whole):
    made = router({"one": Server(a_example=[f"192.0.2.{n}" for n in range(100)])})
    more = {"use_edns": False} if edns is False else {"payload": edns}
    for _ in range(2):  # from the server, then from the cache
        read = ask(made, "a.example", flow=client(network=network), **more)
        assert bool(read.answer) == whole
        assert bool(read.flags & dns.flags.TC) != whole


@pytest.mark.parametrize("count", [2, 100])
def test_what_tcp_and_udp_share_fits_both(count):
    made = router({"one": Server(a_example=[f"192.0.2.{n}" for n in range(count)])})
    for network in ("udp", "tcp") * 3:
        read = ask(made, "a.example", flow=client(network=network), use_edns=False)
        cut = network == "udp" and count == 100
        assert bool(read.flags & dns.flags.TC) == cut
        assert len(read.answer[0] if read.answer else ()) == (0 if cut else count)


def lookup(made, *words, **more):
    return [str(ip) for ip in asyncio.run(made.lookup(*words, **more))]


def test_lookup():
    made = router({
        "one": Server(a_example=["2001:db8::1", "192.0.2.1"], four_example=["192.0.2.4"]),
        "two": Server(a_example=["192.0.2.2"]),
    })  # fmt: skip
    assert lookup(made, "a.example") == ["192.0.2.1", "2001:db8::1"]
    assert lookup(made, "a.example", strategy="prefer_ipv6") == ["2001:db8::1", "192.0.2.1"]
    assert lookup(made, "a.example", strategy="ipv6_only") == ["2001:db8::1"]
    assert lookup(made, "a.example", server="two") == ["192.0.2.2"]
    assert lookup(made, "four.example") == ["192.0.2.4"]
    assert lookup(made, "192.0.2.9") == ["192.0.2.9"]
    for name, more in (("gone.example", {}), ("a..b", {}), ("a.example", {"server": "three"})):
        with pytest.raises((DialError, Exception), match=r"no address|three|domain name"):
            lookup(made, name, **more)


def test_a_server_that_needs_itself_is_told():
    server = Server()
    made = router({"one": server})

    async def itself():
        await made.lookup("a.example")

    server.before = itself
    with pytest.raises(DialError, match="resolve each other"):
        lookup(made, "a.example")


def test_unknown_rule_set():
    with pytest.raises(ConfigError, match="no rule set"):
        router({"one": Server()}, rules=[{"rule_set": "geo", "server": "one"}])


def test_what_is_no_query():
    made = router({"one": Server()})
    query = dns.message.make_query("a.example", "A").to_wire()

    async def send(data):
        return await made.exchange(data, client())

    assert asyncio.run(send(b"")) is None
    assert asyncio.run(send(query[:2] + b"\x80\0" + query[4:])) is None
    assert asyncio.run(send(query[:14]))[3] & 15 == 1
    assert asyncio.run(send(query[:2] + b"\x20\0" + query[4:]))[3] & 15 == 4
    assert asyncio.run(send(query[:4] + b"\0\2" + query[6:]))[3] & 15 == 1


class Echo(Server):
    """Says anything."""

    answer = b""

    async def exchange(self, query):
        return self.answer


@given(st.binary(max_size=100), st.binary(max_size=100), st.booleans())
def test_never_raises(data, answer, headed):
    query = dns.message.make_query("a.example", "A").to_wire()
    server = Echo()
    server.answer = query[:2] + b"\x81\x80" + query[4:] + answer if headed else answer
    made = router({"one": server}, sink=Sink())

    async def main():
        for one in (data, query, query + data, query[:12] + data):
            out = await made.exchange(one, client())
            assert out is None or out[:2] == one[:2]

    asyncio.run(main())


class Service(Server):
    """Its HTTPS records are texts."""

    async def exchange(self, query):
        read = dns.message.from_wire(query)
        made = dns.message.make_response(read)
        if read.question[0].rdtype == dns.rdatatype.HTTPS:
            made.answer.append(dns.rrset.from_text(read.question[0].name, self.ttl, "IN", "HTTPS", *self.texts))
        return made.to_wire()


def test_hints_and_targets_are_told_before_the_answer_is_out_and_on_hits():
    server, sink = Service(), Sink()
    server.texts = ["1 svc.example. ipv4hint=192.0.2.5 ipv6hint=2001:db8::5"]
    made = router({"one": server}, sink=sink)
    for host in ("192.0.2.7", "192.0.2.8"):
        ask(made, "a.example", "HTTPS", client(host))
    assert sink.learned == [
        ("a.example", host, [("192.0.2.5", 60), ("2001:db8::5", 60)]) for host in ("192.0.2.7", "192.0.2.8")
    ]
    assert sink.targets == [("svc.example", 60)] * 2


class Refusing(Sink):
    """Takes no more than one answer."""

    def learn(self, name, client, addresses, targets=()):
        if self.learned:
            raise PeerError("too much")
        super().learn(name, client, addresses, targets)


def test_what_cannot_be_learned_is_not_given_out():
    sink = Refusing()
    made = router({"one": Server(a_example=["192.0.2.1"])}, sink=sink)
    assert ask(made, "a.example").answer
    for host in ("192.0.2.8", "192.0.2.9"):
        said = ask(made, "a.example", flow=client(host))
        assert (said.rcode(), said.answer) == (dns.rcode.SERVFAIL, [])
        assert made.learned(ip_address("192.0.2.1"), ip_address(host)) == ("a.example",), "as others were told"
    assert len(sink.learned) == 1


def test_names_are_those_that_the_kernel_goes_by_too():
    server, sink = Server(a_example=["192.0.2.1"]), Sink()
    made = router({"one": server}, sink=sink)
    ask(made, "a.example")
    ip, me = ip_address("192.0.2.1"), ip_address("192.0.2.7")
    sink.known = {"192.0.2.1": ("b.example", "a.example")}
    assert made.learned(ip, me) == ("a.example", "b.example")
    made.teach(None)
    assert made.learned(ip, me) == ("a.example",)
    made.forget()
    assert ask(made, "a.example").answer
    assert made.learned(ip, me) == ()


def test_policy_comes_before_cache_and_servers():
    server = Server(a_doh_example=["192.0.2.1"], b_example=["192.0.2.2"])
    made = router({"one": server})
    asyncio.run(made.lookup("a.doh.example"))
    wire = message.query("a.doh.example", message.A)
    assert made.hit(wire, client()), "asked as lookup does, so that the cache has it"
    made.obey(Policy(refused=frozenset({"doh.example"}), ech=True))
    asyncio.run(made.lookup("a.doh.example"))
    asked = len(server.asked)
    assert made.hit(wire, client()) is None
    for _ in range(2):
        assert ask(made, "a.doh.example", payload=1232).rcode() == dns.rcode.NXDOMAIN
    assert ask(made, "b.example").answer
    assert len(server.asked) == asked + 1
    other = router({"one": server})
    other.succeed(made)
    assert ask(other, "a.doh.example").rcode() == dns.rcode.NXDOMAIN


def test_ech_does_not_reach_the_cache():
    server = Service()
    server.texts = ["1 . alpn=h2 ech=AAT+DQAA"]
    made = router({"one": server})
    made.obey(Policy(ech=True))
    for _ in range(2):
        assert str(ask(made, "a.example", "HTTPS").answer[0][0]) == '1 . alpn="h2"'


class Made(Server):
    """Makes addresses up: ``fakes`` knows which."""

    fake = True


FAKED = [{"domain_suffix": "example", "server": "made"}]


def test_what_is_made_up_is_for_clients_alone():
    """Not for what we look up ourselves, whoever asks first; neither is told what the other was."""
    real, made = Server(a_example=["192.0.2.1"]), Made(a_example=["198.18.0.3"])
    for order in ("client first", "ours first"):
        found = router({"real": real, "made": made}, rules=FAKED)
        for turn in range(4):
            if (turn % 2 == 0) == (order == "client first"):
                assert ask(found, "a.example").answer[0][0].address == "198.18.0.3"
            else:
                assert [str(ip) for ip in asyncio.run(found.lookup("a.example", strategy="ipv4_only"))] == ["192.0.2.1"]
    with pytest.raises(DialError, match="makes its addresses up"):
        asyncio.run(found.lookup("a.example", server="made"))


def test_what_is_made_up_is_neither_kept_nor_learned():
    made, told = Made(a_example=["198.18.0.3"]), Sink()
    found = router({"real": Server(a_example=["192.0.2.1"]), "made": made}, rules=FAKED, sink=told)
    for _ in range(3):
        assert ask(found, "a.example").answer[0][0].address == "198.18.0.3"
    assert len(made.asked) == 3
    assert told.learned == []
    assert found.learned(ip_address("198.18.0.3"), client().source.ip) == ()
