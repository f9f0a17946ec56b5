"""The cache of wire answers."""

import dns.message
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st

from gateway.dns import message
from gateway.dns.cache import CAPACITY, Cache, key_of


def query(name="www.example.com", kind="A", ident=1, **more):
    return dns.message.make_query(name, kind, id=ident, **more).to_wire()


def answer(asked, *records, code=0):
    made = dns.message.make_response(dns.message.from_wire(asked))
    made.set_rcode(code)
    for owner, ttl, kind, data in records:
        made.answer.append(dns.rrset.from_text(owner, ttl, "IN", kind, data))
    return made.to_wire()


def keep(cache, asked, *records, now=100.0, code=0):
    return cache.put((None, key_of(asked)), asked, answer(asked, *records, code=code), now)


def get(cache, asked, now):
    entry = cache.get((None, key_of(asked)), now)
    return entry and dns.message.from_wire(entry.answer(asked, now))


RECORDS = (("www.example.com.", 60, "CNAME", "cdn.example.net."), ("cdn.example.net.", 30, "A", "192.0.2.1"))


def test_ttl_counts_down_and_ends():
    cache = Cache()
    assert keep(cache, query(), *RECORDS)
    for now, left in ((100.0, 30), (100.9, 30), (101.0, 29), (129.5, 1), (120.0, 10)):
        read = get(cache, query(ident=77), now)
        assert read.id == 77
        assert [rrset.ttl for rrset in read.answer] == [left, left]
    assert get(cache, query(), 130.0) is None
    assert len(cache) == 0


def test_the_client_sees_its_own_spelling():
    cache = Cache()
    keep(cache, query(), *RECORDS)
    asked = query("wWw.eXample.COM", ident=5)
    entry = cache.get((None, key_of(asked)), 100.0)
    assert entry.answer(asked, 100.0)[12:29] == asked[12:29]


def test_type_bytes_are_not_letters():
    assert key_of(query(kind="HTTPS")) != key_of(query(kind="TYPE97"))
    assert key_of(query("A.example")) == key_of(query("a.example"))
    assert key_of(query()) != key_of(query(payload=1232))


def test_only_plain_questions_are_shared():
    assert key_of(query(payload=4096)) is not None
    assert key_of(query(options=[dns.edns.GenericOption(10, b"12345678")])) is None
    assert key_of(query() + b"x") is None
    assert key_of(answer(query(), *RECORDS)) is None
    assert key_of(b"") is None


def test_failures_and_foreign_answers_are_not_kept():
    cache = Cache()
    assert keep(cache, query(), code=2) is None
    assert keep(cache, query(), code=3) is None  # no SOA
    assert keep(cache, query(), ("www.example.com.", 0, "A", "192.0.2.1")) is None
    other = answer(query("other.example"), ("other.example.", 60, "A", "192.0.2.1"))
    assert cache.put((None, b""), query(), other, 0.0) is None


def test_least_recently_used_goes_first():
    cache = Cache(1)
    names = [f"n{number}.example" for number in range(CAPACITY + 1)]
    for name in names[:-1]:
        keep(cache, query(name), (f"{name}.", 60, "A", "192.0.2.1"))
    assert get(cache, query(names[0]), 100.0)
    keep(cache, query(names[-1]), (f"{names[-1]}.", 60, "A", "192.0.2.1"))
    assert len(cache) == CAPACITY
    assert get(cache, query(names[0]), 100.0)
    assert get(cache, query(names[1]), 100.0) is None


def test_disable_expire_keeps_at_zero():
    cache = Cache(disable_expire=True)
    keep(cache, query(), *RECORDS)
    assert get(cache, query(), 1e6).answer[0].ttl == 0


def test_addresses_with_what_is_left():
    entry = keep(Cache(), query(), *RECORDS)
    assert [str(ip) for ip in entry.addresses] == ["192.0.2.1"]
    assert (entry.left(110.0), entry.left(500.0), entry.name) == (20, 0, "www.example.com")


@given(st.binary(max_size=120), st.binary(max_size=200))
def test_any_bytes(asked, data):
    cache = Cache()
    for one in (asked, query()[:12] + asked):
        key = key_of(one)
        if key is not None:
            cache.put((None, key), one, data, 0.0)
            cache.put((None, key), one, one[:12] + data, 0.0)


@given(st.binary(max_size=100))
def test_whatever_is_kept_can_be_given(tail):
    cache = Cache()
    data = answer(query(), *RECORDS)[:33] + tail
    entry = cache.put((None, b""), query(), data, 0.0, 60)
    if entry is not None:
        message.records(entry.answer(query(), 30.0))
