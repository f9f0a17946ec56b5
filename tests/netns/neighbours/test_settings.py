"""Settings of the host that break steering: that they do, that doctor says so, that its lines mend it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .house import CLIENT, DESK, FAMILIES, KINDS, PROXIED, House, printed

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("settings")]
BRIDGED = "net/bridge/bridge-nf-call-{}"


@pytest.fixture
def house_of_docker(alone: House) -> Iterator[House]:
    """The frames of every bridge pass the IP hooks, as Docker has it."""
    alone.lines("ip link add docker0 type bridge", *(f"sysctl -qw {BRIDGED.format(kind)}=1" for kind in TABLES))
    try:
        yield alone
    finally:
        alone.lines("ip link del docker0", *(f"sysctl -qw {BRIDGED.format(kind)}=0" for kind in TABLES))


TABLES = ("iptables", "ip6tables")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lan_stays_itself_inside_its_bridge(house_of_docker: House, kind: str, family: int) -> None:
    """Hosts of one LAN reach each other though every frame of theirs meets our rules, which know the proxy alone."""
    house = house_of_docker
    assert house.ask(kind, house.client, DESK[family]) == f"desk {CLIENT[family]}"


def test_bridge_nf_is_told_with_lines_that_leave_docker_alone(house_of_docker: House) -> None:
    house = house_of_docker
    assert house.ask("tcp", house.client, PROXIED[4], timeout=0.5) == "", "tproxy works inside a bridge by now?"
    found = house.findings()
    assert found["neighbours"]["detail"].startswith("Docker (interface docker0)")
    lines = [line for kind in TABLES for line in found[f"bridge-nf-call-{kind}"]["remedy"].split("; ")]
    assert printed("ip link ", "sysctl -w net/bridge") == sorted(lines)
    for name, family in (("bridge-nf-call-iptables", 4), ("bridge-nf-call-ip6tables", 6)):
        assert not found[name]["ok"]
        assert "br-lan" in found[name]["detail"]
        house.lines(*found[name]["remedy"].split("; "))
        for kind in KINDS:
            assert house.ask(kind, house.client, PROXIED[family]) == f"server {PROXIED[family]}"
    found = house.findings()
    assert found["bridge-nf-call-iptables"]["ok"]
    assert found["bridge-nf-call-ip6tables"]["ok"]
    (docker,) = house.gateway.run(["ip", "-j", "-d", "link", "show", "docker0"], check=True).json()
    assert {docker["linkinfo"]["info_data"][f"nf_call_{kind}"] for kind in TABLES} == {1}


def test_the_switch_of_one_bridge_is_seen_too(alone: House) -> None:
    house = alone
    house.lines("ip link set br-lan type bridge nf_call_iptables 1")
    assert house.ask("tcp", house.client, PROXIED[4], timeout=0.5) == ""
    assert house.findings()["bridge-nf-call-ip6tables"]["ok"]
    assert house.remedies("bridge-nf-call-iptables") == ["ip link set br-lan type bridge nf_call_iptables 0"]
    house.lines(*house.remedies("bridge-nf-call-iptables"))
    assert house.ask("tcp", house.client, PROXIED[4]) == f"server {PROXIED[4]}"


@pytest.fixture
def valid_marks(alone: House) -> Iterator[House]:
    """As wg-quick sets it."""
    conf = "net/ipv4/conf"
    alone.lines(f"sysctl -qw {conf}/all/src_valid_mark=1")
    try:
        yield alone
    finally:
        names = ("all", "br-lan", "lo", "wan0", "wan1")
        alone.lines(
            f"sysctl -qw {conf}/all/src_valid_mark=0", *(f"sysctl -qw {conf}/{name}/rp_filter=0" for name in names)
        )


@pytest.mark.parametrize("name", ["all", "br-lan"])
def test_a_strict_reverse_path_with_marks(valid_marks: House, name: str) -> None:
    house = valid_marks
    assert house.findings()["src-valid-mark"]["ok"]
    house.lines(f"sysctl -qw net/ipv4/conf/{name}/rp_filter=1")
    assert house.ask("tcp", house.client, PROXIED[4], timeout=0.5) == ""
    found = house.findings()["src-valid-mark"]
    assert not found["ok"]
    assert "br-lan" in found["detail"]
    lines = found["remedy"].split("; ")
    assert set(printed("sysctl -w net/ipv4")) <= set(lines)
    house.lines(*lines)
    assert house.findings()["src-valid-mark"]["ok"]
    for kind in KINDS:
        assert house.ask(kind, house.client, PROXIED[4]) == f"server {PROXIED[4]}"
        assert house.ask(kind, house.gateway, PROXIED[4]) == f"server {PROXIED[4]}"


@pytest.mark.parametrize("name", ["all", "br-lan", "lo", "wan0"])
def test_a_strict_reverse_path_alone_is_no_harm(alone: House, name: str) -> None:
    """The LAN's way to userspace, and the way over lo of what starts here."""
    house = alone
    house.lines(f"sysctl -qw net/ipv4/conf/{name}/rp_filter=1")
    try:
        assert house.findings()["src-valid-mark"]["ok"]
        for kind in KINDS:
            for host in (house.client, house.gateway):
                assert house.ask(kind, host, PROXIED[4]) == f"server {PROXIED[4]}"
    finally:
        house.lines(f"sysctl -qw net/ipv4/conf/{name}/rp_filter=0")
