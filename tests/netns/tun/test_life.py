"""How it begins, changes and ends: reload, SIGKILL, down, and beside a ``gateway`` object."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from gateway.lab.stage import poll

from .rig import CLIENT, MARKED, MODES, OWN, SITES, TUN, Ours, Rig, config, family

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("tun")]

SITE4, OTHER4, SITE6 = SITES[0], SITES[1], SITES[4]
BOTH = pytest.mark.parametrize("mode", MODES)


def index(rig: Rig) -> str:
    return str(rig.gateway.run(["ip", "-o", "link", "show", "tun0"], check=True).out.partition(":")[0])


@BOTH
def test_nothing_is_left_after_a_stop(rig: Rig, mode: str) -> None:
    before = rig.state()
    with rig.ours(MODES[mode] | {"strict_route": True}) as ours:
        assert rig.carried(rig.client, "tcp", SITE4)
        assert rig.state() != before
        ours.stop()
        assert rig.state() == before
        assert not rig.carried(rig.client, "tcp", SITE4)


@BOTH
@pytest.mark.parametrize("then", ["down", "start"])
def test_sigkill(rig: Rig, mode: str, then: str) -> None:
    """The device and the table are gone at once, and with them whatever led there; the LAN is online."""
    before = rig.state()
    with rig.ours(MODES[mode]) as ours, rig.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)

        def who() -> str:
            try:
                sock.sendto(b"?", (SITE4, 7777))
                return sock.recv(100).decode()
            except (TimeoutError, ConnectionRefusedError):
                return ""

        assert who() == MARKED[4]
        for site in (SITE4, SITE6):
            assert rig.carried(rig.client, "tcp", site)
        ours.kill()
        poll(lambda: "gateway_tun" not in rig.nft("list", "tables"), "the table stays", 10)
        for kind in ("tcp", "udp", "icmp"):
            assert not rig.carried(rig.client, kind, SITE4)
        # The same port: what was known of its flow is forgotten.
        poll(lambda: who() == CLIENT[4], "the flow stays dead", 10)
        assert "proto 239" in rig.state()["rules4"], "it had no time to take them away"
        if then == "start":
            # Another place of the rules: those of the dead one go all the same.
            ours.value["inbounds"][0] = TUN | MODES[mode] | {"iproute2_rule_index": 9200}
            ours.start()
            assert rig.carried(rig.client, "tcp", SITE4)
            assert "9000:" not in rig.state()["rules4"]
            ours.stop()
        else:
            assert ours.command("down").ok
        assert rig.state() == before


@BOTH
def test_reload_keeps_what_did_not_change(rig: Rig, mode: str) -> None:
    with rig.ours(MODES[mode]) as ours, rig.connect(rig.client, SITE4, 7777) as sock:
        sock.sendall(b"!one")
        assert sock.recv(10) == b"!one"
        device = index(rig)
        ours.value["route"] = {"rules": [{"ip_cidr": OTHER4, "action": "reject"}]}
        assert "applied" in ours.reload()
        assert index(rig) == device
        sock.sendall(b"two")
        assert sock.recv(10) == b"two"
        assert rig.ask(rig.client, "tcp", OTHER4) == ""
        ours.value["inbounds"][0]["mtu"] = 1400
        assert "applied" in ours.reload()
        assert index(rig) != device
        assert "mtu 1400 " in rig.state()["links"]
        assert rig.carried(rig.client, "tcp", SITE4)
        ours.value["inbounds"] = []
        assert "applied" in ours.reload()
        assert not rig.carried(rig.client, "tcp", SITE4)


@BOTH
def test_a_strict_reverse_path(rig: Rig, mode: str) -> None:
    """What comes out of the device has the addresses of others; the host's own setting stays."""
    name = "net.ipv4.conf.all.rp_filter"
    rig.gateway.run(["sysctl", "-qw", f"{name}=1"], check=True)
    try:
        with rig.ours(MODES[mode]):
            for host in (rig.client, rig.gateway):
                for kind in ("tcp", "udp", "icmp"):
                    assert rig.carried(host, kind, SITE4), (host.name, kind)
            assert rig.gateway.run(["sysctl", "-n", name]).out.strip() == "1"
    finally:
        rig.gateway.run(["sysctl", "-qw", f"{name}=0"], check=True)


@BOTH
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("link set tun0 down", "link set tun0 up"), "set down"),
        (("address flush dev tun0",), "restored"),
        (("route flush table 2381", "route flush table 2022", "-6 route flush table 2022"), "restored"),
        (("rule del pref 9000", "rule del pref 9001", "-6 rule del pref 9000"), "restored"),
        (("link del tun0",), "made anew"),
    ],
)
def test_what_others_take_away_is_put_back(rig: Rig, mode: str, words: tuple[str, ...], said: str) -> None:
    names = ("rules4", "rules6", "tables", "local")
    with rig.ours(MODES[mode]) as ours, rig.connect(rig.client, SITE4, 7777) as sock:
        sock.sendall(b"!one")
        assert sock.recv(10) == b"!one"
        before = rig.state()
        for some in words:
            rig.gateway.run(["ip", *some.split()], check=True)
            if some.endswith("down"):
                poll(lambda: said in ours.told(), "it does not say so", 5)
        poll(lambda: all(rig.state()[name] == before[name] for name in names), "not put back", 5)
        poll(lambda: said in ours.told(), "it does not say so", 5)
        for site in (SITE4, SITE6):
            for kind in ("tcp", "udp", "icmp"):
                assert rig.carried(rig.client, kind, site)
        sock.sendall(b"two")
        assert sock.recv(10) == b"two"
        ours.stop()
        assert "Traceback" not in ours.told()
        assert "proto 239" not in "".join(rig.state().values())


def test_a_name_that_another_takes_is_the_others(rig: Rig) -> None:
    with rig.ours({}) as ours:
        words = b"link del tun0\nlink add tun0 type veth peer name other\nlink set tun0 up\n"
        rig.gateway.run(["ip", "-b", "-"], stdin=words, check=True)
        try:
            poll(lambda: "cannot be put back: make the interface tun0" in ours.told(), "it does not say so", 5)
            assert "inet" not in rig.gateway.run(["ip", "-4", "address", "show", "tun0"]).out
        finally:
            rig.gateway.run(["ip", "link", "del", "tun0"], check=True)
        poll(lambda: "made anew" in ours.told(), "it is not made again", 5)
        poll(lambda: rig.carried(rig.client, "tcp", SITE4), "carried again", 5)


def test_what_a_reload_cannot_do_it_says(rig: Rig) -> None:
    ours = Ours(rig, config([{"type": "socks", "tag": "in", "listen": "127.0.0.1", "listen_port": 1080}]))
    try:
        ours.start()
        ours.value["inbounds"].append(TUN)
        assert "restart" in ours.reload()
        assert "tun0" not in rig.state()["links"]
    finally:
        ours.close()
    with rig.ours({}) as ours:
        ours.value["inbounds"][0] = TUN | {"iproute2_table_index": 2077, "mtu": 9000}
        rig.gateway.run(["ip", "link", "add", "tun5", "type", "veth", "peer", "name", "other"], check=True)
        ours.value["inbounds"].append(TUN | {"tag": "b", "interface_name": "tun5", "auto_route": False})
        try:
            assert "configuration kept" in (line := ours.reload())
            assert "tun5" in line
            assert rig.carried(rig.client, "tcp", SITE4), "what stood before goes on"
        finally:
            rig.gateway.run(["ip", "link", "del", "tun5"], check=True)


def gateway_object(rig: Rig) -> dict[str, Any]:
    """The client's LAN is the gateway's, the guest's is nobody's."""
    return {
        "uplinks": [{"interface": "wan0", "external": True}],
        "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
        "kernel": {"cgroup": str(rig.gateway.group), "offload": "off"},
    }


@BOTH
def test_beside_a_gateway(rig: Rig, mode: str) -> None:
    """Flows of its LANs and of this host are judged by the gateway, in the kernel where the rules allow it; the tun has
    the rest. The LAN's port 53 is the gateway's too. (It masquerades IPv4.)"""
    dns = {"servers": [{"type": "hosts", "tag": "hosts", "predefined": {"a.example": ["192.0.2.7"]}}]}
    route = {"rules": [{"port": 7777, "outbound": "proxy"}], "final": "direct"}
    value = config([TUN | MODES[mode]], dns=dns, route=route, gateway=gateway_object(rig))
    # Another name for the same, but one that the kernel does not carry.
    value["outbounds"] = [{"type": "direct", "tag": "direct"}, {"type": "direct", "tag": "proxy", "override_port": 80}]
    ours = Ours(rig, value)
    try:
        ours.start()
        poll(lambda: ours.command("status", "--json").json()["steering"], "steering", 10)
        for host, inbound in ((rig.client, "gateway"), (rig.gateway, "gateway"), (rig.guest, "tun-in")):
            for site in (SITE4, SITE6):
                for kind in ("tcp", "udp"):
                    before = len(ours.told())
                    assert rig.ask(host, kind, site, 7777), (host.name, kind, site)
                    (line,) = [line for line in ours.told()[before:].splitlines() if " to proxy" in line]
                    assert f" {inbound}: " in line
                    before = len(ours.told())
                    assert rig.ask(host, kind, site), (host.name, kind, site)
                    assert (":80 to direct" in ours.told()[before:]) == (host is rig.guest), "else the kernel's"
        assert rig.ping(rig.client, SITE4) != "?"
        # Of this host, to a network behind its LAN: not steered, and not the tun's either.
        rig.client.run(["ip", "address", "add", "198.18.5.5/32", "dev", "lo"], check=True)
        rig.gateway.run(["ip", "route", "add", "198.18.5.5", "via", CLIENT[4]], check=True)
        assert rig.ask(rig.gateway, "tcp", "198.18.5.5", 9) == "", "nobody listens there"
        assert "198.18.5.5:9" not in ours.told()
        rig.client.run(["ip", "address", "del", "198.18.5.5/32", "dev", "lo"], check=True)
        rig.gateway.run(["ip", "route", "del", "198.18.5.5"], check=True)
        for site in (SITE4, SITE6):
            for kind in ("tcp", "udp"):
                assert rig.ask(rig.gateway, kind, site, 53) == OWN[family(site)], "the host's resolver asks itself"
        for server in (OTHER4, "192.168.7.1"):
            words = ["dig", f"@{server}", "+short", "+tries=1", "+time=5", "a.example", "A"]
            assert rig.client.run(words).out.split() == ["192.0.2.7"]
        ours.kill()
        poll(lambda: "gateway_tun" not in rig.nft("list", "tables"), "the table stays", 10)
        assert rig.ask(rig.client, "tcp", SITE4, 7777)
        assert ours.command("down").ok
        assert "proto 239" not in "".join(rig.state().values())
    finally:
        ours.close()


@BOTH
def test_beside_a_gateway_what_the_kernel_alone_can_carry(rig: Rig, mode: str) -> None:
    """Neither TCP nor UDP, of its LANs and of this host: it goes on its way, whatever the rules say of all flows."""
    value = config([TUN | MODES[mode]], route={"final": "proxy"}, gateway=gateway_object(rig))
    value["outbounds"] = [{"type": "socks", "tag": "proxy", "server": "192.0.2.1", "server_port": 1080}]
    ours = Ours(rig, value)
    try:
        ours.start()
        poll(lambda: ours.command("status", "--json").json()["steering"], "steering", 10)
        for host, six in ((rig.client, CLIENT[6]), (rig.gateway, OWN[6])):
            assert rig.ping(host, SITE4) == OWN[4]
            assert rig.ping(host, SITE6) == six
        for kind, site in ((socket.AF_INET, SITE4), (socket.AF_INET6, SITE6)):
            with (
                rig.client.socket(kind, socket.SOCK_RAW, 253) as near,
                rig.server.socket(kind, socket.SOCK_RAW, 253) as far,
            ):
                far.settimeout(5)
                near.sendto(b"experiment", (site, 0))
                assert far.recv(100).endswith(b"experiment")
    finally:
        ours.close()
