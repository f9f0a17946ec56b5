"""T11: the other 24 bits of both marks belong to others, and so do their ip rules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.kernel import mark

from .house import CLIENT, DIRECT, FAMILIES, KINDS, PROXIED, SERVER1, SITE, TPROXY, WAN, WAN1, House

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t11_marks")]
OTHERS = {"mwan3": 0x3F00, "tailscale": 0xFF0000, "both": 0xFF3F00}

# It marks first, and looks at every later hook whether its bits are there as it left them.
TABLE = """
table inet other {{
	counter lost_input {{ }}
	counter lost_forward {{ }}
	counter lost_postrouting {{ }}
	counter lost_tracked {{ }}
	counter seen_input {{ }}
	counter seen_forward {{ }}
	counter seen_postrouting {{ }}

	chain early {{
		type filter hook prerouting priority -170; policy accept;
		iifname "br-lan" meta mark set meta mark & {rest:#010x} | {value:#x}
		iifname "br-lan" ct state new ct mark set ct mark & {rest:#010x} | {value:#x}
	}}

	chain own {{
		type route hook output priority -170; policy accept;
		meta mark set meta mark & {rest:#010x} | {value:#x}
		ct state new ct mark set ct mark & {rest:#010x} | {value:#x}
	}}

	chain arriving {{
		type filter hook input priority 0; policy accept;
		iifname "br-lan" meta l4proto {{ tcp, udp }} th dport {port} jump judge_input
	}}

	chain passing {{
		type filter hook forward priority 0; policy accept;
		iifname "br-lan" meta l4proto {{ tcp, udp }} th dport {port} jump judge_forward
	}}

	chain leaving {{
		type filter hook postrouting priority 0; policy accept;
		meta l4proto {{ tcp, udp }} th dport {port} jump judge_postrouting
	}}

	chain judge_input {{
		ct mark & {mask:#x} != {value:#x} counter name lost_tracked
		meta mark & {mask:#x} == {value:#x} counter name seen_input return
		counter name lost_input
	}}

	chain judge_forward {{
		ct mark & {mask:#x} != {value:#x} counter name lost_tracked
		meta mark & {mask:#x} == {value:#x} counter name seen_forward return
		counter name lost_forward
	}}

	chain judge_postrouting {{
		ct mark & {mask:#x} != {value:#x} counter name lost_tracked
		meta mark & {mask:#x} == {value:#x} counter name seen_postrouting return
		counter name lost_postrouting
	}}
}}
"""


@pytest.fixture(params=OTHERS)
def others(alone: House, request: pytest.FixtureRequest) -> Iterator[tuple[House, int]]:
    """With the mask's bits as mark, but for the lowest."""
    mask = OTHERS[request.param]
    value = mask & ~0x100
    alone.nft(TABLE.format(mask=mask, value=value, rest=0xFFFFFFFF & ~mask, port=SITE))
    try:
        yield alone, value
    finally:
        alone.nft("delete table inet other")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_t11_bits_of_others_are_kept(others: tuple[House, int], kind: str, family: int) -> None:
    """In both planes, from the LAN and from the router itself, first packets and later ones."""
    house, value = others
    for host in (house.client, house.gateway):
        for site in (DIRECT, PROXIED):
            with house.open(kind, host, site[family]) as sock:
                for _ in range(3):
                    sock.send(b"?")
                    assert sock.recv(100).startswith(b"server ")
                port = sock.getsockname()[1]
                found = [entry.mark for entry in house.entries() if entry.source.port == port]
            kinds = {mark.USER, mark.SNIFF} if site is PROXIED else {mark.DIRECT}
            assert {bits & ~mark.CLASS for bits in found} == {value}
            assert kinds & {bits & mark.CLASS for bits in found}
    counters = house.gateway.run(["nft", "-j", "list", "counters", "table", "inet", "other"], check=True).json()
    packets = {one["counter"]["name"]: one["counter"]["packets"] for one in counters["nftables"] if "counter" in one}
    assert {name: number for name, number in packets.items() if name.startswith("lost")} == dict.fromkeys(
        ("lost_input", "lost_forward", "lost_postrouting", "lost_tracked"), 0
    )
    assert min(number for name, number in packets.items() if name.startswith("seen")) >= 3


@pytest.mark.parametrize("bits", [0x100, 0x40000])
@pytest.mark.parametrize("kind", KINDS)
def test_t11_rules_of_others_still_route(alone: House, kind: str, bits: int) -> None:
    """A direct flow leaves by the uplink that a foreign mark asks for; a proxied one with the same mark comes in."""
    house, mask = alone, 0x3F00 if bits == 0x100 else 0xFF0000
    house.nft(f"""table inet other {{
        chain marks {{
            type filter hook prerouting priority mangle; policy accept;
            iifname "br-lan" meta mark set meta mark & {0xFFFFFFFF & ~mask:#010x} | {bits:#x}
        }}
    }}""")
    house.lines(
        f"ip route add default via {SERVER1[4]} dev wan1 table 77",
        f"ip rule add priority 5000 fwmark {bits:#x}/{mask:#x} lookup 77",
    )
    try:
        assert house.ask(kind, house.client, DIRECT[4]) == f"server {WAN1[4]}"
        assert house.ask(kind, house.client, PROXIED[4]) == f"server {PROXIED[4]}"
        assert house.ask(kind, house.client, DIRECT[6]) == f"server {CLIENT[6]}"
    finally:
        house.lines("ip rule del priority 5000", "ip route flush table 77")
        house.nft("delete table inet other")
    assert house.ask(kind, house.client, DIRECT[4]) == f"server {WAN[4]}"


@pytest.mark.parametrize(
    ("chain", "rule", "told"),
    [
        ("type filter hook prerouting priority mangle", "meta mark set 0x10",
         "writes our byte of the meta mark: let it write meta mark set meta mark & 0xff000000 | 0x10"),
        ("type filter hook postrouting priority mangle", "ct mark set meta mark",
         "writes our byte of the ct mark: let it change bits of 0x00ffffff alone"),
    ],
)  # fmt: skip
def test_t11_doctor_names_who_writes_our_byte(alone: House, chain: str, rule: str, told: str) -> None:
    house = alone
    assert house.findings()["foreign-marks"]["ok"]
    house.nft(f'table inet other {{ chain c {{ {chain}; policy accept; iifname != "lo" {rule}; }}; }}')
    try:
        found = house.findings()["foreign-marks"]
        assert not found["ok"]
        assert found["detail"].startswith("inet other c handle ")
        assert told in found["detail"]
        # It tells the truth: with such a rule the flow for userspace is lost.
        if rule == "meta mark set 0x10":
            assert house.ask("tcp", house.client, PROXIED[4], timeout=0.5) == ""
    finally:
        house.nft("delete table inet other")
    assert house.ask("tcp", house.client, PROXIED[4]) == f"server {PROXIED[4]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_t11_doctor_names_ip_rules_on_our_byte(alone: House, family: int) -> None:
    house = alone
    house.lines(f"ip -{family} rule add priority 7000 fwmark 0x2000000/0xff000000 lookup 77",
                f"ip -{family} rule add priority 100 from 198.51.100.77 lookup 77" if family == 4 else
                f"ip -{family} rule add priority 100 from 2001:db8:77::1 lookup 77")  # fmt: skip
    try:
        found = house.findings()
        assert f"-{family} priority 7000 fwmark 0x2000000" in found["ip-rules"]["detail"]
        assert f"-{family} priority 100" in found["ip-rule-order"]["detail"]
        house.lines(*house.remedies("ip-rules"))
        assert house.findings()["ip-rules"]["ok"]
    finally:
        house.lines(f"ip -{family} rule del priority 100")


def test_t11_doctor_names_who_diverts_to_our_port(alone: House) -> None:
    house = alone
    house.nft(f"""table inet other {{
        chain c {{ type nat hook prerouting priority dstnat + 5; policy accept;
            iifname "br-lan" tcp dport 4444 redirect to :{TPROXY}; }}
    }}""")
    try:
        found = house.findings()["foreign-chains"]
        assert f"to our port {TPROXY}" in found["detail"]
        assert found["detail"].startswith("inet other c handle ")
        house.lines(*house.remedies("foreign-chains"))
        assert house.findings()["foreign-chains"]["ok"]
    finally:
        house.nft("delete table inet other")
