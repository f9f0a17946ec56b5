"""T1, T2: a direct flow never leaves the kernel; a proxied one arrives with the address that the client had dialled."""

from __future__ import annotations

import pytest

from gateway.kernel import conntrack, mark

from .conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, talk

pytestmark = [pytest.mark.root, pytest.mark.slow]
MANY = 20


@pytest.fixture
def running(whole: Whole) -> Whole:
    whole.start("open")
    return whole


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_t01_direct_by_address_never_reaches_userspace(running: Whole, kind: str, family: int) -> None:
    whole, site, index = running, DIRECT[family == 6], family == 6
    before = whole.counted()
    socks = [whole.open(kind, whole.client, site) for _ in range(MANY)]
    try:
        # IPv4 masqueraded, IPv6 as it came.
        assert {talk(sock) for sock in socks} == {KERNEL[index]}
        ports = {sock.getsockname()[1] for sock in socks}
        entries = [one for one in whole.gateway.call(conntrack.dump) if str(one.destination.ip) == site]
        ours = [one for one in entries if one.source.port in ports]
        assert len(ours) == MANY, "an entry each: nobody dialled on"
        assert {one.mark & mark.CLASS for one in ours} == {mark.DIRECT}
        assert {str(one.reply_destination.ip) for one in ours} == {KERNEL[index]}
        after = whole.counted()
        assert {name: after[name] - before[name] for name in before} == {
            name: MANY if name == "to_direct" else 0 for name in before
        }
        assert not [row for row in whole.flows() if row["plane"] == "userspace" and site in row["destination"]]
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_t02_proxied_arrives_with_its_destination(running: Whole, kind: str, family: int) -> None:
    whole, site, index = running, PROXIED[family == 6], family == 6
    before = whole.counted()
    with whole.open(kind, whole.client, site) as sock:
        assert talk(sock) == USERSPACE[index], "the server sees the gateway"
        address, port = sock.getsockname()[:2]
        brackets = ("[", "]") if family == 6 else ("", "")
        wanted = [f"{host.join(brackets)}:{number}" for host, number in ((address, port), (site, 7))]
        rows = [row for row in whole.flows() if row["source"] == wanted[0]]
        assert [(row["plane"], row["network"], row["destination"], row["chain"]) for row in rows] == [
            ("userspace", kind, wanted[1], ["far"])
        ]
        entries = whole.gateway.call(lambda: conntrack.dump(mark.USER, mark.CLASS))
        ours = [one for one in entries if one.source.port == port and str(one.source.ip) == address]
        assert [str(one.destination) for one in ours] == [wanted[1]]
        assert ours[0].reply_source == ours[0].destination, "delivered here without NAT"
    after = whole.counted()
    assert after["to_user"] == before["to_user"] + 1
    assert after["to_direct"] == before["to_direct"]
