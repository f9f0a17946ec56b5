"""What clients are not told, with dnspython as the other reader."""

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import PeerError
from gateway.dns import message
from gateway.dns.ech import without_ech
from gateway.dns.policy import CANARY, Policy

ALL = Policy(frozenset({"doh.example"}), canary=True, ddr=True)
ECH = "ech=AAT+DQAA"


def query(name, kind="A"):
    return dns.message.make_query(name, kind)


def test_names_that_are_answered_here():
    for name, code in ((CANARY, dns.rcode.NXDOMAIN), ("doh.example", dns.rcode.NXDOMAIN),
                       ("a.doh.example", dns.rcode.NXDOMAIN), ("_dns.resolver.arpa", dns.rcode.NOERROR),
                       ("resolver.arpa", dns.rcode.NOERROR)):  # fmt: skip
        asked = query(name, "SVCB")
        wire = asked.to_wire()
        read = dns.message.from_wire(ALL.answer(wire, message.question(wire).name))
        assert asked.is_response(read)
        assert (read.rcode(), read.answer) == (code, [])
        assert Policy().answer(wire, message.question(wire).name) is None
    for name in ("xdoh.example", "example", "doh.example.org", f"a.{CANARY}", "arpa", "xresolver.arpa", ""):
        assert ALL.answer(query(name).to_wire(), name) is None


def answer(*records, more=()):
    made = dns.message.make_response(query("a.example", "HTTPS"))
    made.flags |= dns.flags.AD
    for kind, *texts in records:
        made.answer.append(dns.rrset.from_text("a.example.", 60, "IN", kind, *texts))
    for name, kind, text in more:
        made.additional.append(dns.rrset.from_text(name, 60, "IN", kind, text))
    return made.to_wire()


SIGNED = "HTTPS 8 2 60 20300101000000 20200101000000 1 example. AAAA"


def test_ech_goes_and_nothing_else():
    wire = answer(("HTTPS", f"1 . alpn=h2 ipv4hint=192.0.2.1 {ECH} ipv6hint=2001:db8::1", "2 b.example. alpn=h3"),
                  ("RRSIG", SIGNED),
                  more=[("b.example.", "HTTPS", f"1 . {ECH}"), ("b.example.", "A", "192.0.2.9")])  # fmt: skip
    read = dns.message.from_wire(without_ech(wire))
    assert sorted(map(str, read.answer[0])) == ['1 . alpn="h2" ipv4hint="192.0.2.1" ipv6hint="2001:db8::1"',
                                                '2 b.example. alpn="h3"']  # fmt: skip
    assert [one.rdtype for one in read.answer] == [dns.rdatatype.HTTPS], "no signature of what was there"
    assert [str(one[0]) for one in read.additional] == ["1 .", "192.0.2.9"]
    assert not read.flags & dns.flags.AD
    assert len(Policy(ech=True).clean(wire, message.HTTPS)) == len(without_ech(wire))
    assert Policy(ech=True).clean(wire, message.A) is wire
    assert Policy().clean(wire, message.HTTPS) is wire


def test_a_record_that_is_nothing_without_ech():
    read = dns.message.from_wire(without_ech(answer(("HTTPS", f"1 . mandatory=ech {ECH}", "2 . alpn=h2"))))
    assert [str(one) for one in read.answer[0]] == ['2 . alpn="h2"']
    assert dns.message.from_wire(without_ech(answer(("HTTPS", f"1 . mandatory=ech {ECH}")))).answer == []


def test_an_answer_without_ech_stays_as_it_is():
    wire = answer(("HTTPS", "1 . alpn=h2"), ("RRSIG", SIGNED))
    assert without_ech(wire) is wire


def test_a_broken_record_is_the_peers_fault():
    wire = answer(("HTTPS", "1 . alpn=h2"))
    with pytest.raises(PeerError):
        without_ech(wire.replace(b"\0\1\0\0\1\0\3\2h2", b"\0\1\0\0\1\0\3\7h2"))


def test_a_record_of_another_class_has_no_parameters():
    made = dns.message.make_response(query("a.example", "HTTPS"))
    made.answer.append(dns.rrset.from_text("a.example.", 60, "CH", "HTTPS", r"\# 3 000100"))
    wire = made.to_wire()
    assert without_ech(wire) is wire


WHOLE = answer(("HTTPS", f"1 svc.example. alpn=h2 ipv4hint=192.0.2.1 {ECH}", "0 b.example."), ("RRSIG", SIGNED),
               more=[("b.example.", "SVCB", f"1 . {ECH} mandatory=ech")])  # fmt: skip
CHANGES = st.lists(st.tuples(st.integers(2, len(WHOLE) - 1), st.integers(0, 255)), max_size=4)


@given(CHANGES, st.integers(0, len(WHOLE)), st.binary(max_size=3))
def test_whatever_a_server_says_only_the_server_is_at_fault(changes, end, more):
    wire = bytearray(WHOLE)
    for at, value in changes:
        wire[at] = value
    for one in (bytes(wire), bytes(wire[:end]) + more):
        for read in (without_ech, message.lesson):
            try:
                read(one)
            except PeerError:
                pass
