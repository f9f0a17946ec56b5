"""``gateway doctor`` beside a gateway that runs: a real dnsmasq plays the router on its LAN, a client asks others."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dns.message
import pytest

from gateway.lab.stage import poll
from tests.peers import path

from .naming import CLIENTS, RESOLVER, Naming, naming

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.peer("dnsmasq"), pytest.mark.timeout(300)]
KINDS = ("lan-routers", "lan-dhcp", "lan-dns", "lan-encrypted-dns")


@pytest.fixture(scope="module")
def house() -> Iterator[Naming]:
    if os.geteuid():
        pytest.skip("needs root")
    with naming() as house:
        yield house


def watched(house: Naming, *words: str) -> dict[str, dict[str, Any]]:
    done = house.command_alone("doctor", "--json", *words)
    return {one["name"]: one for one in json.loads(done.out)["findings"] if one["name"] in KINDS}


@contextmanager
def rival(house: Naming) -> Iterator[None]:
    """Another router on the LAN."""
    leases = house.lab.folder / "rival.leases"
    command = [path("dnsmasq"), "-k", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file",
               "--interface=eth0", f"--dhcp-leasefile={leases}", "--enable-ra", "--dhcp-authoritative",
               "--dhcp-range=192.168.7.50,192.168.7.60,2m",
               "--dhcp-range=2001:db8:1::50,2001:db8:1::60,64,2m"]  # fmt: skip
    process = house.client.popen(command)
    try:
        house.client.wait_listening([("udp", 67), ("udp", 547)], process)
        yield
    finally:
        process.kill()


def test_a_quiet_lan(house: Naming) -> None:
    """Our own dnsmasq serves it, and somebody from afar says to be its router: his packets have passed another."""
    lan = {"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}
    house.reload(lans=[{**lan, "dhcp_server": {"range": ["192.168.7.100", "192.168.7.199"]}}])
    house.gateway.wait_listening([("udp", 67)])
    stop = threading.Event()
    with house.client.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 64)
        target = ("ff02::1", 0, 0, house.client.call(lambda: socket.if_nametoindex("eth0")))

        def advertise() -> None:
            while not stop.wait(0.2):
                sock.sendto(struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0), target)

        thread = threading.Thread(target=advertise)
        thread.start()
        try:
            found = watched(house)
        finally:
            stop.set()
            thread.join()
    assert sorted(found) == sorted(KINDS)
    assert all(one["ok"] for one in found.values()), found


def test_another_router_on_the_lan(house: Naming) -> None:
    house.reload()
    with rival(house):
        found = watched(house)
    assert not found["lan-routers"]["ok"]
    assert found["lan-routers"]["remedy"]
    assert "on lan0 advertises a default route" in found["lan-routers"]["detail"]
    assert "prefix 2001:db8:1::/64" in found["lan-routers"]["detail"]
    servers = found["lan-dhcp"]["detail"]
    assert any(f"DHCP server {one} on lan0 offers 192.168.7." in servers for one in CLIENTS[4])
    assert "DHCPv6 server fe80::" in servers
    assert found["lan-dhcp"]["remedy"]


def test_clients_that_ask_others(house: Naming) -> None:
    site = "198.51.100.77"
    with house.client.socket(socket.AF_INET) as sock, house.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        sock.settimeout(10)
        sock.connect((site, 853))
        found = watched(house, "--listen", "0")
        assert sorted(found) == ["lan-dns", "lan-encrypted-dns"]
        assert found["lan-dns"]["ok"], "what is captured is not asked of others"
        assert f"{CLIENTS[4][0]} asks {site}" in found["lan-encrypted-dns"]["detail"]
        assert found["lan-encrypted-dns"]["remedy"] == "gateway.dns_policy.dot: block"
        house.reload(capture_dns=False)
        plain.bind((CLIENTS[4][0], 0))
        plain.sendto(dns.message.make_query("a.example", "A").to_wire(), (RESOLVER, 53))
        found = poll(
            lambda: (told := watched(house, "--listen=0")) and not told["lan-dns"]["ok"] and told, "not seen", 60
        )
        assert f"{CLIENTS[4][0]} asks {RESOLVER}: not captured" in found["lan-dns"]["detail"]
    house.reload(dns_policy={"dot": "block"})
    with house.client.socket(socket.AF_INET) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((site, 853))
    assert "1 flows to encrypted resolvers were refused" in watched(house, "--listen=0")["lan-encrypted-dns"]["detail"]
