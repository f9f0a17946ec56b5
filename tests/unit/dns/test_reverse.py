"""Names by address."""

from ipaddress import ip_address

from gateway.dns import reverse
from gateway.dns.reverse import NAMES, Reverse

IP, ME, YOU = (ip_address(text) for text in ("192.0.2.1", "198.51.100.1", "2001:db8::1"))


def test_own_name_first_then_newest():
    made = Reverse()
    for name, client in (("a", ME), ("b", YOU), ("c", None)):
        made.learn(name, client, [IP], 60, 0.0)
    assert made.names(IP, ME, 1.0) == ("a", "c", "b")
    assert made.names(IP, YOU, 1.0) == ("b", "c", "a")
    assert made.names(YOU, ME, 1.0) == ()
    assert made.told("a", ME, [IP])
    assert not made.told("b", ME, [IP])


def test_names_end_with_their_ttl():
    made = Reverse()
    made.learn("a", ME, [IP], 60, 0.0)
    made.learn("b", ME, [IP], 600, 0.0)
    made.learn("a", ME, [IP], 60, 100.0)
    assert made.names(IP, ME, 60 + 100 + reverse.GRACE - 1) == ("a", "b")
    assert made.names(IP, ME, 60 + 100 + reverse.GRACE) == ("b",)
    assert made.names(IP, ME, 5000.0) == ()


def test_bounds(monkeypatch):
    monkeypatch.setattr(reverse, "ADDRESSES", 3)
    monkeypatch.setattr(reverse, "CLIENTS", 3)
    made = Reverse()
    for number in range(NAMES + 5):
        made.learn(f"n{number}", ME, [IP], 60, 0.0)
    assert len(made.names(IP, ME, 0.0)) == NAMES
    ips = [ip_address(f"203.0.113.{n}") for n in range(4)]
    made.learn("many", ME, ips, 60, 0.0)
    assert made.names(IP, ME, 0.0) == made.names(ips[0], ME, 0.0) == ()
    assert made.names(ips[3], ME, 0.0) == ("many",)
    assert len(made._last) == 3
