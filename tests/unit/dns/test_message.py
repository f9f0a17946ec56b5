"""Wire helpers against dnspython as the judge, and against anything at all."""

from ipaddress import ip_address

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import LocalError, PeerError, ProtocolError
from gateway.dns import message


def answer(name="Www.Example.com.", kind="A", records=(), soa=None, code=0, edns=None):
    asked = dns.message.make_query(name, kind, use_edns=edns)
    made = dns.message.make_response(asked)
    made.set_rcode(code)
    for owner, ttl, rtype, *data in records:
        made.answer.append(dns.rrset.from_text(owner, ttl, "IN", rtype, *data))
    if soa:
        made.authority.append(
            dns.rrset.from_text("example.com.", soa[0], "IN", "SOA", f"ns.example.com. a.example.com. 1 2 3 4 {soa[1]}")
        )
    return made.to_wire(max_size=65535)


def test_query_is_what_dnspython_reads():
    read = dns.message.from_wire(message.query("www.Example.com", message.AAAA, 7))
    assert (read.id, str(read.question[0]), read.payload) == (7, "www.Example.com. IN AAAA", 1232)
    assert dns.message.from_wire(message.query("", message.A)).question[0].name == dns.name.root
    assert message.question(message.query("bücher.example", 1)).name == "xn--bcher-kva.example"


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".com", ".".join(["a" * 60] * 5), ".com"])
def test_impossible_names(name):
    with pytest.raises(LocalError):
        message.query(name, 1)


def test_addresses_follow_the_records():
    data = answer(
        records=[
            ("www.example.com.", 60, "CNAME", "cdn.example.net."),
            ("cdn.example.net.", 30, "A", "192.0.2.1", "192.0.2.2"),
            ("cdn.example.net.", 20, "AAAA", "2001:db8::1"),
        ]
    )
    assert sorted(message.addresses(data), key=lambda one: str(one[0])) == [
        (ip_address("192.0.2.1"), 30), (ip_address("192.0.2.2"), 30), (ip_address("2001:db8::1"), 20),
    ]  # fmt: skip
    assert message.question(data).name == "www.example.com"
    assert message.lifetime(data, message.records(data)) == 20


def test_hints_are_addresses():
    data = answer(kind="HTTPS", records=[
        ("www.example.com.", 9, "HTTPS", "1 . alpn=h3 ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1"),
    ])  # fmt: skip
    assert [str(ip) for ip, _ in message.addresses(data)] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]


@pytest.mark.parametrize(("soa", "code", "seconds"), [((100, 50), 3, 50), ((40, 50), 3, 40), ((40, 50), 0, 40),
                                                     (None, 3, 0), (None, 0, 0)])  # fmt: skip
def test_negative_answers_live_by_their_soa(soa, code, seconds):
    data = answer(soa=soa, code=code)
    assert message.lifetime(data, message.records(data)) == seconds


def test_a_chain_that_ends_in_nothing_lives_by_the_soa():
    data = answer(records=[("www.example.com.", 60, "CNAME", "gone.example.com.")], soa=(100, 5), code=3)
    assert message.lifetime(data, message.records(data)) == 5


@pytest.mark.parametrize("edns", [None, 0])
def test_truncated_answers_are_whole_messages(edns):
    data = answer(records=[("www.example.com.", 60, "A", *(f"192.0.2.{n}" for n in range(1, 200)))], edns=edns)
    short = message.truncate(data, 512)
    read = dns.message.from_wire(short)
    assert read.flags & dns.flags.TC
    assert not read.answer
    assert read.question == dns.message.from_wire(data).question
    assert read.edns == (-1 if edns is None else 0)
    assert message.truncate(data, 65535) is data


def test_payload_size():
    assert message.payload_size(dns.message.make_query("a.example", "A", use_edns=False).to_wire()) == 512
    assert message.payload_size(dns.message.make_query("a.example", "A", payload=4096).to_wire()) == 4096
    assert message.payload_size(dns.message.make_query("a.example", "A", payload=100).to_wire()) == 512


def test_reply_is_what_dnspython_reads():
    asked = dns.message.make_query("Host.example", "A", payload=1232)
    read = dns.message.from_wire(message.reply(asked.to_wire(), 0, [(1, bytes([192, 0, 2, 9]))], 600))
    assert asked.is_response(read)
    assert str(read.answer[0]) == "Host.example. 600 IN A 192.0.2.9"
    assert read.edns == 0
    assert read.flags & dns.flags.RD
    refused = dns.message.from_wire(message.reply(asked.to_wire(), message.REFUSED))
    assert refused.rcode() == dns.rcode.REFUSED


def test_unreadable_question_gets_a_header():
    assert message.reply(b"\x12\x34\1\0\0\2" + bytes(6) + b"junk", 1) == b"\x12\x34\x81\x81" + bytes(8)


def test_loops_end():
    head = bytes(4) + b"\0\1\0\1\0\0\0\0"
    for name in (b"\xc0\x0c", b"\1a\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\xff\xff"):
        with pytest.raises(PeerError):
            message.read_name(head + name + bytes(20), 12)
        with pytest.raises(PeerError):
            message.question(head + name + bytes(20))


def lesson(name, kind, *answer, additional=(), authority=()):
    """Of an answer of ``(owner, type, text)`` records."""
    made = dns.message.make_response(dns.message.make_query(name, kind))
    sections = zip((made.answer, made.authority, made.additional), (answer, authority, additional), strict=True)
    for section, records in sections:
        section += [dns.rrset.from_text(owner, 60, "IN", *record) for owner, *record in records]
    found = message.lesson(made.to_wire())
    return found.name, [str(ip) for ip in found.addresses], list(found.targets)


SOA = ("example.", "SOA", "a. b. 1 2 3 4 5")


def test_the_name_that_was_asked_for_owns_what_its_aliases_lead_to():
    chain = [("a.example.", "CNAME", "b.example."), ("b.example.", "CNAME", "c.example.")]
    assert lesson("A.example", "A", *chain, ("c.example.", "A", "192.0.2.1")) == ("a.example", ["192.0.2.1"], [])
    # A resolver behind us asks on by itself where the answer breaks off, not where the server says that this is all.
    assert lesson("a.example", "AAAA", *chain) == ("a.example", [], ["c.example"])
    assert lesson("a.example", "AAAA", *chain, authority=[SOA]) == ("a.example", [], [])


def test_service_records_lead_to_addresses_and_names():
    hints = "1 . ipv4hint=192.0.2.1,192.0.2.2 ipv6hint=2001:db8::1"
    assert lesson("a.example", "HTTPS", ("a.example.", "HTTPS", hints)) == (
        "a.example", ["192.0.2.1", "192.0.2.2", "2001:db8::1"], [],
    )  # fmt: skip
    alias = ("a.example.", "HTTPS", "0 b.example.")
    assert lesson("a.example", "HTTPS", alias) == ("a.example", [], ["b.example"])
    more = [("b.example.", "HTTPS", "1 c.example. ipv4hint=192.0.2.3"), ("c.example.", "AAAA", "2001:db8::2")]
    assert lesson("a.example", "HTTPS", alias, additional=more) == (
        "a.example", ["192.0.2.3", "2001:db8::2"], ["b.example", "c.example"],
    )  # fmt: skip
    assert lesson("a.example", "HTTPS", ("a.example.", "HTTPS", "0 .")) == ("a.example", [], [])
    service = [("a.example.", "CNAME", "b.example."), ("b.example.", "HTTPS", "1 . alpn=h2")]
    assert lesson("a.example", "HTTPS", *service) == ("a.example", [], ["b.example"])
    port = ("_8443._https.a.example.", "HTTPS", "1 b.example. port=8443")
    assert lesson("_8443._https.a.example", "HTTPS", port) == ("a.example", [], ["b.example"])
    assert lesson("a.example", "A", ("a.example.", "A", "192.0.2.1"), additional=more)[1:] == (["192.0.2.1"], [])


def test_an_answer_that_leads_everywhere_is_refused():
    many = [("a.example.", "HTTPS", *(f"1 t{number}.example." for number in range(message.MOST_TARGETS + extra)))
            for extra in (0, 1)]  # fmt: skip
    assert len(lesson("a.example", "HTTPS", many[0])[2]) == message.MOST_TARGETS
    with pytest.raises(PeerError, match="leads to"):
        lesson("a.example", "HTTPS", many[1])


def test_an_answer_with_more_addresses_than_anybody_needs_is_refused():
    many = [("a.example.", "A", *(f"198.18.{n // 256}.{n % 256}" for n in range(message.MOST_ADDRESSES + extra)))
            for extra in (0, 1)]  # fmt: skip
    assert len(lesson("a.example", "A", many[0])[1]) == message.MOST_ADDRESSES
    with pytest.raises(PeerError, match="257 addresses"):
        lesson("a.example", "A", many[1])


CALLS = (message.lesson, message.question, message.records, message.addresses, message.payload_size, message.flags,
         lambda data: message.truncate(data, 20), lambda data: message.reply(data, 0),
         lambda data: message.read_name(data, 12))  # fmt: skip


@given(st.binary(max_size=300))
def test_any_bytes(data):
    for call in CALLS:
        for wire in (data, bytes(4) + b"\0\1\0\1\0\0\0\0" + data):
            try:
                call(wire)
            except ProtocolError:
                pass


@given(st.data())
def test_damaged_answers(draw):
    wire = bytearray(answer(kind="HTTPS", edns=0, records=[
        ("www.example.com.", 60, "CNAME", "cdn.example.net."),
        ("cdn.example.net.", 30, "A", "192.0.2.1"),
        ("cdn.example.net.", 9, "HTTPS", "1 . alpn=h3 ipv4hint=192.0.2.1 ipv6hint=2001:db8::1"),
    ], soa=(4, 5)))  # fmt: skip
    for _ in range(draw.draw(st.integers(0, 5))):
        wire[draw.draw(st.integers(0, len(wire) - 1))] = draw.draw(st.integers(0, 255))
    data = bytes(wire[: draw.draw(st.integers(0, len(wire)))])
    for call in CALLS:
        try:
            call(data)
        except ProtocolError:
            pass
