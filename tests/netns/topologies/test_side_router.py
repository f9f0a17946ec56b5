"""One arm: devices that choose the box as gateway go through it, those that do not are let be; main goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import BOX, DESK, DIRECT, FORWARDING, MAIN, PHONE, WAN, Place, poll

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq"), pytest.mark.peer("busybox")]


def redirects(place: Place, host: str) -> tuple[int, int]:
    """ICMP redirects that ``host`` was sent, of IPv4 and IPv6."""

    def work() -> tuple[int, int]:
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == "Icmp:")
        six = dict(line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
        return int(dict(zip(names, values, strict=True))["InRedirects"]), int(six["Icmp6InRedirects"])

    return place.host(host).call(work)


def tracked(place: Place, address: str) -> list[str]:
    """Connections of that client which the box tracks, a line each."""
    family = "ipv6" if ":" in address else "ipv4"
    out = place.host("box").run(["conntrack", "-L", "-f", family, "--orig-src", address]).out
    return [line for line in out.splitlines() if "src=" in line]


@pytest.mark.slow
@pytest.mark.parametrize("fail", ["open", "closed"])
def test_one_arm(place: Place, fail: str) -> None:
    found = place.init("box", "--topology", "side-router", "--uplink", "eth0")
    assert found["lans"] == [{"interface": "eth0"}]
    assert "dhcp4" not in found["uplinks"][0]
    if fail == "closed":
        place.file.write_text(place.file.read_text().replace('"fail": "open"', '"fail": "closed"'))
    before = place.host("box").run(["sysctl", "-a", "-r", r"net\.ipv[46]\..*(redirects|forward|accept_ra)"]).out
    place.start()
    poll(lambda: place.status()["uplinks"][0]["ready"])

    place.direct("desk", BOX)
    place.proxied("desk")
    for address in DESK.values():
        rows = tracked(place, address)
        # Answers come back through us: what was half seen would never be assured.
        assert any("ASSURED" in row and f"dst={DIRECT[6 if ':' in address else 4]}" in row for row in rows), rows
    place.direct("phone", PHONE)
    assert not tracked(place, PHONE[4]), "it is main's alone"
    assert not tracked(place, PHONE[6])
    assert redirects(place, "desk") == (0, 0)

    # Main's DHCP server is the only one; names come from the box too.
    assert place.lease("phone").startswith("192.168.7.1")
    assert ("udp", 67) not in place.host("box").listeners()
    assert place.name("desk", BOX[4]) == DIRECT[4]
    assert place.name("desk", MAIN[4]) == DIRECT[4]

    place.kill()
    assert place.name("desk", BOX[4]) == DIRECT[4]
    if fail == "open":
        place.direct("desk", BOX)
    else:
        assert [place.ask("desk", address) for address in DIRECT.values()] == ["", ""]
    place.direct("phone", PHONE)
    place.start()
    place.direct("desk", BOX)
    place.proxied("desk")
    assert redirects(place, "desk") == (0, 0)

    place.end()
    after = place.host("box").run(["sysctl", "-a", "-r", r"net\.ipv[46]\..*(redirects|forward|accept_ra)"]).out
    assert after == before
    rows = place.host("box").run(["ip", "addr", "show", "dev", "eth0"]).out
    assert all(address in rows for address in BOX.values()), "they were there before us"
    # A plain router on one arm would have told: the counters above can count.
    for name, value in FORWARDING.items():
        place.host("box").run(["sysctl", "-qw", f"net/{name}={value}"], check=True)

    def told() -> bool:
        assert place.ask("desk", DIRECT[4]) == WAN[4]
        assert place.ask("desk", DIRECT[6]) == DESK[6]
        return all(redirects(place, "desk"))

    poll(told)
