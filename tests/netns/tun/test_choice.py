"""Whose flows enter the tun, and to where: each option that says so, in both ways of taking them where both have it."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import time
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from gateway.core.address import IP
from gateway.kernel.tun import HEADER, PLAIN, Device
from gateway.lab.host import Host
from gateway.lab.process import User
from gateway.lab.stage import poll
from gateway.protocol.tun import codec

from .rig import CLIENT, GUEST, MAC, MARKED, MODES, NEAR, OWN, SITES, TUN, Ours, Rig, config

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("tun")]

SITE4, OTHER4, SITE6, OTHER6 = SITES[0], SITES[1], SITES[4], SITES[5]
SOMEBODY = User(4711, 4711)
BOTH = pytest.mark.parametrize("mode", MODES)


def carried(rig: Rig, place: str, site: str, **options: Any) -> dict[str, bool]:
    return {kind: rig.carried(getattr(rig, place), kind, site, **options) for kind in ("tcp", "udp")}


TAKEN, LEFT = {"tcp": True, "udp": True}, {"tcp": False, "udp": False}


@BOTH
def test_exclude_uid(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode] | {"exclude_uid": 99, "exclude_uid_range": "4000:4999"}):
        for site in (SITE4, SITE6):
            assert carried(rig, "gateway", site, user=SOMEBODY) == LEFT
            assert carried(rig, "gateway", site) == TAKEN
            assert carried(rig, "client", site) == TAKEN


@BOTH
def test_include_uid(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode] | {"include_uid_range": ["4000:4999"], "exclude_uid": [4000]}):
        assert carried(rig, "gateway", SITE4, user=SOMEBODY) == TAKEN
        assert carried(rig, "gateway", SITE4, user=User(4000, 4000)) == LEFT
        assert carried(rig, "gateway", SITE6) == LEFT
        assert carried(rig, "client", SITE4) == TAKEN, "users are those of this host"


@BOTH
def test_exclude_interface(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode] | {"exclude_interface": "lan1"}):
        for site in (SITE4, SITE6):
            assert carried(rig, "guest", site) == LEFT
            assert carried(rig, "client", site) == TAKEN
            assert carried(rig, "gateway", site) == TAKEN
        assert not rig.carried(rig.guest, "icmp", SITE4)


@BOTH
def test_include_interface(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode] | {"include_interface": ["lan0"]}):
        for site in (SITE4, SITE6):
            assert carried(rig, "client", site) == TAKEN
            assert carried(rig, "guest", site) == LEFT
            assert carried(rig, "gateway", site) == LEFT


def test_hardware_addresses(rig: Rig) -> None:
    with rig.ours({"auto_redirect": True, "exclude_mac_address": [MAC]}):
        assert carried(rig, "client", SITE4) == LEFT
        assert carried(rig, "guest", SITE4) == TAKEN
    with rig.ours({"auto_redirect": True, "include_mac_address": MAC}):
        assert carried(rig, "client", SITE6) == TAKEN
        assert carried(rig, "guest", SITE6) == LEFT


@pytest.mark.parametrize(
    ("options", "taken"), [({"exclude_mac_address": MAC}, True), ({"include_mac_address": MAC}, False)]
)
def test_a_link_without_hardware_addresses(rig: Rig, options: dict[str, Any], taken: bool) -> None:
    """Who has none is neither included nor excluded by his."""
    who = {4: ip_address("192.168.9.2"), 6: ip_address("2001:db8:6::2")}
    with closing(rig.gateway.call(lambda: Device("ppp9"))) as link:
        for words in ("link set ppp9 up", "route add 192.168.9.0/24 dev ppp9", "route add 2001:db8:6::/64 dev ppp9"):
            rig.gateway.run(["ip", *words.split()], check=True)
        with rig.ours({"auto_redirect": True} | options):
            for version, site in ((4, SITE4), (6, SITE6)):
                link.write(PLAIN + datagram(who[version], ip_address(site)))
                data = poll(lambda link=link, version=version: reply(link, who[version]), "no answer", 5)
                assert data.decode() == (MARKED[version] if taken else str(who[version]))


def datagram(source: IP, destination: IP) -> bytes:
    """ "?" to port 80."""
    if source.version == 6:
        pseudo = source.packed + destination.packed + struct.pack("!IHBB", 9, 0, 0, codec.UDP)
        text = struct.pack("!HHHH", 4444, 80, 9, 0) + b"?"
        text = text[:6] + codec.checksum(pseudo + text).to_bytes(2) + text[8:]
        return struct.pack("!IHBB", 6 << 28, 9, codec.UDP, 64) + source.packed + destination.packed + text
    head = struct.pack("!BBHHHBBH", 0x45, 0, 29, 0, 0, 64, codec.UDP, 0) + source.packed + destination.packed
    return head[:10] + codec.checksum(head).to_bytes(2) + head[12:] + struct.pack("!HHHH", 4444, 80, 9, 0) + b"?"


def reply(link: Device, to: IP) -> bytes:
    while (frame := link.read()) is not None:
        packet = codec.parse(bytes(frame[HEADER:]))
        if packet is not None and packet.protocol == codec.UDP and packet.destination == to:
            return packet.data[packet.rest + 8 :]
    return b""


@BOTH
def test_route_address_and_its_exceptions(rig: Rig, mode: str) -> None:
    tun = {"route_address": ["198.51.100.0/24", "2001:db8:2::/64"], "route_exclude_address": [f"{OTHER4}/32", OTHER6]}
    with rig.ours(MODES[mode] | tun):
        for place in ("client", "gateway"):
            for site in (SITE4, SITE6):
                assert carried(rig, place, site) == TAKEN
            for site in (OTHER4, OTHER6):
                assert carried(rig, place, site) == LEFT


@BOTH
def test_all_but_some_leaves_the_lan_its_answers(rig: Rig, mode: str) -> None:
    """What is left of everything is many routes, and each is longer than none: the host's own networks come first."""
    with rig.ours(MODES[mode] | {"route_exclude_address": [f"{OTHER4}/32", f"{OTHER6}/128"]}):
        for site, other, near in ((SITE4, OTHER4, NEAR[0]), (SITE6, OTHER6, NEAR[1])):
            assert carried(rig, "client", site) == TAKEN
            assert carried(rig, "client", other) == LEFT
            assert carried(rig, "client", near) == LEFT
        with (
            rig.gateway.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
            rig.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        ):
            near.bind(("0.0.0.0", 5454))
            for sock in (near, far):
                sock.settimeout(5)
            far.sendto(b"?", ("192.168.7.1", 5454))
            near.sendto(b"!", near.recvfrom(10)[1])
            assert far.recvfrom(10) == (b"!", ("192.168.7.1", 5454))


@BOTH
def test_networks_of_this_host_are_left_alone(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode]):
        for site in NEAR:
            assert carried(rig, "client", site) == LEFT
        assert rig.carried(rig.client, "tcp", SITE4)
        # One that appears while it runs.
        if mode == "redirect":
            rig.gateway.run(["ip", "address", "add", "198.51.100.100/24", "dev", "wan0"], check=True)
            try:
                poll(lambda: "198.51.100.0/24" in rig.nft("list", "set", "inet", "gateway_tun_0", "local4"), "no", 10)
                rig.gateway.run(["ip", "route", "del", "198.51.100.0/24", "dev", "wan0"], check=True)
                assert carried(rig, "client", SITE4) == LEFT
            finally:
                rig.gateway.run(["ip", "address", "del", "198.51.100.100/24", "dev", "wan0"], check=True)
            poll(lambda: rig.carried(rig.client, "tcp", SITE4), "carried again", 10)


@BOTH
@pytest.mark.parametrize("field", ["route_address_set", "route_exclude_address_set"])
def test_rule_sets_and_a_reload_that_changes_one(rig: Rig, tmp_path: Path, mode: str, field: str) -> None:
    """A connection that goes on all the time, and none that fails, while the set is replaced."""
    file = tmp_path / "set.json"

    def write(*prefixes: str) -> None:
        file.write_text(json.dumps({"version": 1, "rules": [{"ip_cidr": list(prefixes)}, {"domain": ["x.example"]}]}))

    inside, outside = (TAKEN, LEFT) if field == "route_address_set" else (LEFT, TAKEN)
    write(f"{SITE4}/32", f"{SITE6}/128")
    sets = {"rule_set": [{"tag": "some", "type": "local", "format": "source", "path": str(file)}]}
    with rig.ours(MODES[mode] | {field: "some"}, route=sets) as ours:
        for site, other in ((SITE4, OTHER4), (SITE6, OTHER6)):
            assert carried(rig, "client", site) == inside
            assert carried(rig, "client", other) == outside
        with rig.connect(rig.client, SITE4, 7777) as sock:
            sock.sendall(b"!one")
            assert sock.recv(10) == b"!one"
            write(f"{OTHER4}/32", f"{OTHER6}/128")
            assert "configuration applied" in (line := ours.reload()), line
            # A set is written at once, a route by the netlink thread.
            poll(lambda: carried(rig, "client", SITE4) == outside, "the set stays", 10)
            for site, other in ((SITE4, OTHER4), (SITE6, OTHER6)):
                assert carried(rig, "client", site) == outside
                assert carried(rig, "gateway", other) == inside
            sock.sendall(b"two")
            assert sock.recv(10) == b"two"


@BOTH
def test_a_reload_that_brings_a_rule_set_and_names_it(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode]) as ours:
        assert carried(rig, "client", SITE4) == TAKEN
        rules = [{"ip_cidr": [f"{SITE4}/32"]}]
        ours.value["route"] = {"rule_set": [{"tag": "some", "type": "inline", "rules": rules}]}
        ours.value["inbounds"][0]["route_exclude_address_set"] = "some"
        assert "configuration applied" in (line := ours.reload()), line
        assert carried(rig, "client", SITE4) == LEFT
        assert carried(rig, "client", OTHER4) == TAKEN


@BOTH
def test_strict_route(rig: Rig, mode: str) -> None:
    tun = MODES[mode] | {"address": "172.19.0.1/30"}
    with rig.ours(tun):
        assert carried(rig, "client", SITE4) == TAKEN
        assert carried(rig, "client", SITE6) == LEFT
    with rig.ours(tun | {"strict_route": True}):
        assert carried(rig, "client", SITE4) == TAKEN
        for place in ("client", "gateway"):
            for kind in ("tcp", "udp"):
                assert rig.ask(getattr(rig, place), kind, SITE6) == ""


@BOTH
def test_where_ipv6_is_switched_off(rig: Rig, mode: str) -> None:
    """A tun of IPv4 alone asks for nothing of the other family."""
    name = "net.ipv6.conf.all.disable_ipv6"
    addresses = rig.gateway.run(["ip", "-6", "-o", "address"], check=True).out
    rig.gateway.run(["sysctl", "-qw", f"{name}=1", "net.ipv6.conf.default.disable_ipv6=1"], check=True)
    try:
        with rig.ours(MODES[mode] | {"address": "172.19.0.1/30"}):
            for place in ("client", "gateway"):
                assert carried(rig, place, SITE4) == TAKEN
            assert rig.gateway.run(["ip", "-6", "rule"]).out.count("proto 239") == 0
    finally:
        rig.gateway.run(["sysctl", "-qw", f"{name}=0", "net.ipv6.conf.default.disable_ipv6=0"], check=True)
        for line in addresses.splitlines():
            words = line.split()
            if words[1] != "lo" or words[3] != "::1/128":
                rig.gateway.run(["ip", "address", "replace", words[3], "dev", words[1], "nodad"])
        rig.gateway.run(["ip", "-6", "route", "replace", "default", "via", NEAR[1]], check=True)


@BOTH
def test_port_53(rig: Rig, mode: str) -> None:
    """A rule answers what clients ask, whomever they ask beyond the tun; with auto_redirect the gateway and the
    neighbours too."""
    dns = {"servers": [{"type": "hosts", "tag": "hosts", "predefined": {"a.example": ["192.0.2.7", "2001:db8::7"]}}]}
    route = {"rules": [{"port": 53, "action": "hijack-dns"}]}
    with rig.ours(MODES[mode], dns=dns, route=route):
        for server in (SITE4, SITE6, *((NEAR[0], "192.168.7.1", "2001:db8:1::1") if mode == "redirect" else NEAR)):
            for host in (rig.client, rig.gateway):
                if host is rig.gateway and server not in (SITE4, SITE6):
                    continue
                for more in ((), ("+tcp",)):
                    words = ["dig", f"@{server}", "+short", "+tries=1", "+time=5", *more, "a.example", "A"]
                    assert host.run(words).out.split() == ["192.0.2.7"], (server, host.name, more)
        assert rig.ask(rig.client, "udp", SITE4, 7777)


QUERY = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + b"\1a\7example\0" + struct.pack("!HH", 1, 1)


def test_captured_names_are_served_to_nobody_else(rig: Rig) -> None:
    """No open resolver: not at the listener's own port, by whatever address of the gateway, one of a neighbour or of
    many; nor at port 53 for who is in no network of this host."""
    dns = {"servers": [{"type": "hosts", "tag": "hosts", "predefined": {"a.example": ["192.0.2.7", "2001:db8::7"]}}]}
    route = {"rules": [{"port": 53, "action": "hijack-dns"}]}
    before = rig.gateway.listeners()
    with rig.ours(MODES["redirect"], dns=dns, route=route):
        ports = {port for _, port in rig.gateway.listeners() - before}
        assert ports
        for host, device, near in (
            (rig.client, "eth0", ["192.168.7.1", "192.168.7.255", "2001:db8:1::1", "192.168.8.1", OWN[4]]),
            (rig.guest, "eth0", ["192.168.8.1", "192.168.8.255", "2001:db8:4::1", "172.19.0.1"]),
            (rig.server, "eth0", [OWN[4], "203.0.113.255", OWN[6], "fdfe:dcba:9876::1"]),
            (rig.gateway, "lo", ["127.0.0.1", "::1", "192.168.7.1", "2001:db8:1::1"]),
        ):
            many = [] if host is rig.gateway else ["255.255.255.255", "224.0.0.1", "ff02::1"]
            asked = [(site, port, "") for site in (*near, *many) for port in ports]
            assert answers(host, device, asked) == []
        for version, site in ((4, SITE4), (6, SITE6)):
            assert answers(rig.server, "", [(OWN[version], 53, site)]) == []
        for site in ("192.168.7.1", SITE4, "2001:db8:1::1"):
            assert set(answers(rig.client, "", [(site, 53, "")])) == {("tcp", site, 53), ("udp", site, 53)}


def answers(host: Host, device: str, asked: list[tuple[str, int, str]]) -> list[tuple[str, str, int]]:
    """Who of these (address, port, source) answers a query, by TCP or UDP."""
    found: list[tuple[str, str, int]] = []
    waiting: dict[socket.socket, tuple[str, str, int]] = {}
    silent: set[socket.socket] = set()
    for site, port, source in asked:
        domain = socket.AF_INET6 if ":" in site else socket.AF_INET
        for kind, style in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM)):
            sock = host.socket(domain, style)
            sock.setblocking(False)
            waiting[sock] = kind, site, port
            if source:
                sock.bind((source, 0))
            if device:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            with suppress(OSError):
                if kind == "tcp":
                    silent.add(sock)
                    sock.connect((site, port))
                else:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    sock.sendto(QUERY, (site, port))
    end = time.monotonic() + 1.5
    while waiting and (left := end - time.monotonic()) > 0:
        readable, writable, _ = select.select(list(waiting), list(silent & waiting.keys()), [], left)
        for sock in writable:
            with suppress(OSError):
                sock.send(struct.pack("!H", len(QUERY)) + QUERY)
            silent.discard(sock)
        for sock in readable:
            with suppress(OSError):
                if sock.recv(1000):
                    found.append(waiting[sock])
            waiting.pop(sock)
            sock.close()
    for sock in waiting:
        sock.close()
    return found


def test_marks_of_auto_redirect(rig: Rig) -> None:
    """A socket that somebody else has marked goes past; ours carry the mark too, beside what is the gateway's own."""
    marks = {"auto_redirect_input_mark": "0x3033", "auto_redirect_output_mark": 0x3034}
    ask = f"""
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(sys.argv[1]))
sock.settimeout(5)
sock.connect(("{SITE4}", 80))
sock.send(b"?")
print(sock.recv(100).decode())
"""
    count = (
        "table inet marks { chain c { type filter hook output priority 0; meta mark & 0xffffff == 0x3034 counter; }; }"
    )
    with rig.ours({"auto_redirect": True} | marks):
        rules = rig.state()["rules4"] if "fwmark 0x3033 lookup 2022" in rig.state()["rules4"] else ""
        assert "fwmark 0x3034 goto" in rules
        for number, seen in ((0, MARKED[4]), (0x3034, OWN[4]), (0x2024, MARKED[4])):
            found = rig.gateway.run([sys.executable, "-c", ask, str(number)], check=True).out.strip()
            assert found == seen, hex(number)
        assert rig.carried(rig.client, "icmp", SITE4)
        rig.gateway.run(["nft", "-f", "-"], stdin=count.encode(), check=True)
        try:
            assert rig.carried(rig.client, "tcp", SITE4)
            assert "counter packets 0" not in rig.nft("list", "table", "inet", "marks")
        finally:
            rig.gateway.run(["nft", "delete", "table", "inet", "marks"], check=True)


def test_a_device_without_routes(rig: Rig) -> None:
    """Whoever leads packets into it."""
    with rig.ours({"auto_route": False}):
        assert carried(rig, "client", SITE4) == LEFT
        for site in (SITE4, SITE6):
            rig.gateway.run(["ip", "route", "add", site, "dev", "tun0"], check=True)
            # Ours would be led into the device again: by an interface they are not.
            for place in ("client", "gateway"):
                assert rig.ask(getattr(rig, place), "udp", site) == "", "the outbound's own way is not the tun"
    direct = {"type": "direct", "tag": "direct", "bind_interface": "wan0"}
    with rig.ours({"auto_route": False}, outbounds=[direct]) as ours:
        for site in (SITE4, SITE6):
            rig.gateway.run(["ip", "route", "add", site, "dev", "tun0"], check=True)
            for kind in ("tcp", "udp"):
                assert rig.ask(rig.client, kind, site) not in ("", GUEST[4])
        assert "leads back" not in ours.told()


@pytest.mark.parametrize("bound", [True, False])
def test_what_would_go_round_is_refused_and_said(rig: Rig, bound: bool) -> None:
    """The outbound's way leads back into the device: its connection is not one more flow."""
    outbounds = config([])["outbounds"] if bound else [{"type": "direct", "tag": "direct"}]
    with rig.ours({"auto_route": False}, outbounds=outbounds) as ours:
        for site in (SITE4, SITE6):
            rig.gateway.run(["ip", "route", "add", site, "dev", "tun0"], check=True)
            for kind in ("tcp", "udp"):
                before = len(ours.told())
                start = time.monotonic()
                assert rig.ask(rig.client, kind, site) == ""
                if kind == "tcp":
                    assert time.monotonic() - start < 3, "refused at once"
                said = ours.told()[before:].splitlines()
                assert len([line for line in said if " tun-in: " in line and kind in line]) == 1, said
            assert rig.ping(rig.client, site, wait=2) == ""
        (link,) = json.loads(rig.gateway.run(["ip", "-j", "-s", "link", "show", "tun0"], check=True).out)
        assert link["stats64"]["tx"]["packets"] < 50, "packets that reached the program"
        (line,) = [line for line in ours.told().splitlines() if "leads back" in line]
        assert f"tun-in: the way of an outbound to {SITE4} leads back into tun0" in line
        assert "bind_interface" in line


def test_two_devices_at_once(rig: Rig) -> None:
    """Each has the interface that it includes; one is stopped by a reload, the other goes on."""
    second = TUN | {
        "tag": "second", "interface_name": "tun1", "address": ["172.19.9.1/30", "fdfe:dcba:9877::1/126"],
        "iproute2_table_index": 2055, "iproute2_rule_index": 9100, "include_interface": "lan1",
    }  # fmt: skip
    ours = Ours(rig, config([TUN | {"include_interface": "lan0"}, second]))
    try:
        ours.start()
        for place, tag in (("client", "tun-in"), ("guest", "second")):
            for site in (SITE4, SITE6):
                assert carried(rig, place, site) == TAKEN
            assert f"{tag}: " in ours.told()
        ours.value["inbounds"].pop(0)
        assert "applied" in ours.reload()
        assert carried(rig, "client", SITE4) == LEFT
        assert carried(rig, "guest", SITE4) == TAKEN
        ours.value["inbounds"].insert(0, TUN | {"include_interface": "lan0"})
        assert "applied" in ours.reload()
        assert carried(rig, "client", SITE6) == TAKEN
    finally:
        ours.close()


def test_a_device_without_routes_beside_one_with_them(rig: Rig) -> None:
    """Its rules may have the priorities of the other's: each takes away its own alone."""
    plain = {"type": "tun", "tag": "plain", "interface_name": "tun1", "address": ["172.19.9.1/30"]}
    ours = Ours(rig, config([TUN, plain]))
    try:
        ours.start()
        for site in (SITE4, SITE6):
            assert carried(rig, "client", site) == TAKEN
        ours.value["inbounds"].pop()
        assert "applied" in ours.reload()
        for site in (SITE4, SITE6):
            assert carried(rig, "client", site) == TAKEN
    finally:
        ours.close()


def test_what_is_refused_is_said(rig: Rig) -> None:
    """The device is another's: the start fails, with the reason; nothing is left."""
    before = rig.state()
    rig.gateway.run(["ip", "link", "add", "tun0", "type", "veth", "peer", "name", "other"], check=True)
    try:
        ours = Ours(rig, config([TUN]))
        with pytest.raises(AssertionError):
            ours.start()
        assert ours.process is not None
        assert "tun0" in ours.process.told()
        ours.close()
    finally:
        rig.gateway.run(["ip", "link", "del", "tun0"], check=True)
    assert rig.state() == before


def test_a_protocol_that_nobody_speaks(rig: Rig) -> None:
    """What the routes lead into the device and is neither TCP, UDP nor an echo is refused. (Only there: with
    auto_redirect other protocols go past.)"""
    with rig.ours({}):
        for version, kind, error in ((4, socket.AF_INET, b"\x03\x02"), (6, socket.AF_INET6, b"\x04\x01")):
            refused(rig, {4: SITE4, 6: SITE6}[version], kind, error)


def refused(rig: Rig, site: str, kind: int, error: bytes) -> None:
    protocol = socket.IPPROTO_ICMP if kind == socket.AF_INET else socket.IPPROTO_ICMPV6
    with (
        rig.client.socket(kind, socket.SOCK_RAW, 253) as sock,
        rig.client.socket(kind, socket.SOCK_RAW, protocol) as heard,
    ):
        heard.settimeout(5)
        sock.sendto(b"experiment", (site, 0))
        while True:
            data, name = heard.recvfrom(2000)
            data = data[20:] if kind == socket.AF_INET else data
            if data[:2] == error:
                break
        assert name[0] == site
        assert data.endswith(b"experiment")


def test_what_others_lead_into_the_device_is_turned_round(rig: Rig) -> None:
    """By a rule that the table does not see, with a mark of somebody else's: the first packet crosses the device, and
    the flow is taken."""
    rule = ["rule", "add", "iif", "lan0", "to", OTHER4, "fwmark", "0x77", "lookup", "2022", "priority", "100"]
    mark = "table ip others { chain c { type filter hook prerouting priority -400; meta mark set 0x77; }; }"
    rig.gateway.run(["nft", "-f", "-"], stdin=mark.encode(), check=True)
    rig.gateway.run(["ip", *rule], check=True)
    # To which an address of anybody looks like one of this host.
    rig.gateway.run(["sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=1"], check=True)
    try:
        with rig.ours({}):
            for kind in ("tcp", "udp"):
                assert rig.carried(rig.client, kind, OTHER4)
    finally:
        rig.gateway.run(["sysctl", "-qw", "net.ipv4.ip_nonlocal_bind=0"], check=True)
        rig.gateway.run(["ip", *rule[:1], "del", *rule[2:]], check=True)
        rig.gateway.run(["nft", "delete", "table", "ip", "others"], check=True)


@pytest.mark.parametrize("tracked", [True, False])
def test_a_running_flow_is_not_seized(rig: Rig, tracked: bool) -> None:
    """What began before us goes on as it began, whether the kernel has tracked it or not."""
    track = "table inet track { chain c { type filter hook prerouting priority 0; ct state new counter; }; }"
    if tracked:
        rig.gateway.run(["nft", "-f", "-"], stdin=track.encode(), check=True)
    try:
        with rig.connect(rig.client, SITE4, 7777) as before, rig.connect(rig.gateway, SITE4, 7777) as local:
            for sock in (before, local):
                sock.sendall(b"?")
            assert before.recv(100).decode() == CLIENT[4]
            with rig.ours({}):
                for sock in (before, local):
                    sock.sendall(b"?")
                assert before.recv(100).decode() == CLIENT[4]
                assert rig.carried(rig.client, "tcp", SITE4)
    finally:
        if tracked:
            rig.gateway.run(["nft", "delete", "table", "inet", "track"], check=True)
