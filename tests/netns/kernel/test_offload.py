"""Flow offload with packets: a whole gateway between a client and a server, and what of their bulk goes which way.

Checksums are the senders' own and verified by receivers: a cable between namespaces would let a wrong one pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.kernel.bpf.demand import INTERVAL
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import End, Link, Route, Topology
from gateway.lab.topology import Host as Plan
from tests import peers

from .whole import Whole

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("offload")]

WAN4, WAN6, SERVER4, SERVER6 = "203.0.113.1", "2001:db8:3::1", "203.0.113.2", "2001:db8:3::2"
CLIENT4, CLIENT6 = "192.168.7.2", "2001:db8:1::2"
SERVERS = {4: SERVER4, 6: SERVER6}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
SEEN = {4: WAN4, 6: CLIENT6}
"""Whom the server sees: IPv6 is not translated."""
SIZE = 6 << 20
"""Bytes of one bulk flow: over 4,000 packets of which one in 251 is looked at."""
FEW = 2
"""The long way may have this part of a flow's packets: what comes before it is learned varies."""
TOPOLOGY = Topology(
    "offload",
    (
        Plan(
            "client",
            addresses={"eth0": (f"{CLIENT4}/24", f"{CLIENT6}/64")},
            routes=(Route("default", "192.168.7.1"), Route("default6", "2001:db8:1::1")),
        ),
        Plan("gateway", addresses={"lan0": (), "wan0": ()}),
        # It knows no way to private addresses.
        Plan("server", addresses={"eth0": (f"{SERVER4}/24", f"{SERVER6}/64")}, routes=(Route("default6", WAN6),)),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("server", "eth0"))),
)


class Way(Whole):
    """The lab with a gateway in it."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        ethtool = str(peers.path("ethtool"))
        for host, names in ((self.client, ["eth0"]), (self.server, ["eth0"]), (self.gateway, ["lan0", "wan0"])):
            for name in names:
                words = [ethtool, "-K", name, "tso", "off", "gso", "off", "gro", "off", "tx", "off", "rx", "off"]
                host.run(words, check=True)
        self.configure()
        self.start()
        poll(lambda: self.offloaded() == ["lan0", "wan0"], self.process.told(), 30)
        poll(self.ready, "the interfaces do not get ready", 20)

    def ready(self) -> bool:
        """The uplink has its routes, and no address of the gateway is tentative."""
        routes = "".join(self.gateway.run(["ip", family, "route"]).out for family in ("-4", "-6"))
        tentative = self.gateway.run(["ip", "-6", "addr", "show", "tentative"]).out
        return routes.count("default via") == 2 and not tentative

    def configure(self, offload: str = "auto") -> None:
        self.path.write_text(json.dumps({
            "outbounds": [{"type": "direct", "tag": "direct"}],
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {
                    "address": [f"{WAN4}/24", f"{WAN6}/64"], "gateway": [SERVER4, SERVER6]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
                "forwards": [{"network": "tcp", "port": 8081, "to": CLIENT4, "to_port": 8080}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": offload},
            },
        }))  # fmt: skip

    def offloaded(self) -> list[str]:
        return sorted(self.status().get("offload", ()))

    def reload(self, offload: str) -> None:
        self.configure(offload)
        os.kill(self.process.pid, signal.SIGHUP)
        wanted = [] if offload == "off" else ["lan0", "wan0"]
        poll(lambda: self.offloaded() == wanted, "the changed configuration is not in force")

    def wake(self) -> None:
        """Bulk until the programs are attached; they stay for some seconds.

        Attached once says nothing: it may have been decided before this bulk that they go."""
        near, far = connect(self, 4, 7999)
        seen = 0
        with near, far:
            for _ in range(40):
                pump(near, far)
                seen = seen + 1 if self.status()["offloading"] else 0
                if seen == 2:
                    return
                time.sleep(INTERVAL)
        raise AssertionError("bulk is not offloaded")

    def forwarded(self) -> int:
        """Packets that went the long way, both families."""
        return self.gateway.call(_forwarded)


def _forwarded() -> int:
    here = Path("/proc/thread-self/net")
    names, values = (line.split() for line in (here / "snmp").read_text().splitlines() if line.startswith("Ip:"))
    six = dict(line.split() for line in (here / "snmp6").read_text().splitlines())
    return int(values[names.index("ForwDatagrams")]) + int(six["Ip6OutForwDatagrams"])


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Way(lab)) as way:
        yield way


def packets(host: Host) -> int:
    """Frames received and sent on the client's cable."""
    numbers = host.run(["ip", "-s", "-j", "link", "show", "eth0"], check=True).json()[0]["stats64"]
    return int(numbers["rx"]["packets"] + numbers["tx"]["packets"])


def pump(source: socket.socket, target: socket.socket, size: int = SIZE) -> None:
    """Send ``size`` random bytes through a connection; they arrive as they are."""
    data = os.urandom(size)
    thread = threading.Thread(target=source.sendall, args=(data,))
    thread.start()
    found = hashlib.sha256()
    while size:
        piece = target.recv(min(size, 1 << 20))
        assert piece, "the connection ended"
        found.update(piece)
        size -= len(piece)
    thread.join()
    assert found.digest() == hashlib.sha256(data).digest()


def connect(way: Way, family: int, port: int = 7001) -> tuple[socket.socket, socket.socket]:
    """A connection from the client to the server: the client's end, the server's."""
    with closing(way.server.socket(FAMILIES[family])) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVERS[family], port))
        listener.listen()
        near = way.client.socket(FAMILIES[family])
        near.settimeout(20)
        near.connect((SERVERS[family], port))
        far, address = listener.accept()
        far.settimeout(20)
        assert address[0] == SEEN[family]
    return near, far


def shortened(way: Way, work: Any, at_least: int) -> None:
    """``work()`` moves ``at_least`` so many packets, most of them by the short way.

    Three times at most: on a machine that others keep from working, it may be too slow to count as bulk."""
    for _ in range(3):
        way.wake()
        long, all_ = way.forwarded(), packets(way.client)
        work()
        long, all_ = way.forwarded() - long, packets(way.client) - all_
        assert all_ >= at_least
        if long * FEW < all_:
            return
    raise AssertionError(f"{long} of {all_} packets went the long way")


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_both_ways(way: Way, family: int) -> None:
    near, far = connect(way, family)
    with near, far:
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        shortened(way, lambda: pump(far, near), SIZE // 1500)


def test_a_port_forward(way: Way) -> None:
    with closing(way.client.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((CLIENT4, 8080))
        listener.listen()
        near = way.server.socket()
        near.settimeout(20)
        near.connect((WAN4, 8081))
        far, address = listener.accept()
        assert address[0] == SERVER4
    with near, far:
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        shortened(way, lambda: pump(far, near), SIZE // 1500)


class Exchange:
    """Datagrams between one socket of the client and one of the server."""

    def __init__(self, way: Way, family: int, *, checksum: bool = True) -> None:
        self.family = family
        self.server = way.server.socket(FAMILIES[family], socket.SOCK_DGRAM)
        self.server.bind((SERVERS[family], 0))
        self.client = way.client.socket(FAMILIES[family], socket.SOCK_DGRAM)
        self.client.connect((SERVERS[family], self.server.getsockname()[1]))
        level, option = (socket.SOL_IP, 12) if family == 4 else (socket.IPPROTO_IPV6, 51)  # IP_RECVTTL, hop limit
        for sock in (self.server, self.client):
            sock.settimeout(5)
            sock.setsockopt(level, option, 1)
            if not checksum:
                sock.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK

    def ask(self, data: bytes) -> None:
        """There and back, whole, a hop older on each way."""
        self.client.send(data)
        found, more, _, source = self.server.recvmsg(65535, 64)
        assert found == data
        assert source[0] == SEEN[self.family]
        assert struct.unpack("=i", more[0][2]) == (63,)
        self.server.sendto(data[::-1], source)
        found, more, _, _ = self.client.recvmsg(65535, 64)
        assert found == data[::-1]
        assert struct.unpack("=i", more[0][2]) == (63,)

    def assure(self) -> None:
        """Until conntrack takes it for a stream: two seconds of both directions."""
        end = time.monotonic() + 3
        while time.monotonic() < end:
            self.ask(b"early")
            time.sleep(0.05)

    def bulk(self, count: int = 2000) -> None:
        for number in range(count):
            self.ask(os.urandom(number % 1200 + 1))

    def insist(self, data: bytes) -> None:
        """Send until an error comes back."""
        for _ in range(20):
            self.client.send(data)
            time.sleep(0.05)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "checksum"), [(4, True), (4, False), (6, True)])
def test_udp(way: Way, family: int, checksum: bool) -> None:
    with Exchange(way, family, checksum=checksum) as exchange:
        exchange.assure()
        shortened(way, exchange.bulk, 4000)
        # Fragments of a flow that is known go the long way, and whole.
        for size in (3000, 20000):
            exchange.ask(os.urandom(size))


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_what_is_too_large_is_told(way: Way, family: int) -> None:
    with Exchange(way, family) as exchange:
        exchange.assure()
        level, option = (socket.SOL_IP, 10) if family == 4 else (socket.IPPROTO_IPV6, 23)  # MTU_DISCOVER
        exchange.client.setsockopt(level, option, 2)  # PMTUDISC_DO
        way.gateway.run(["ip", "link", "set", "wan0", "mtu", "1400"], check=True)
        try:
            time.sleep(1.2)  # a flow is looked at again after a second
            shortened(way, exchange.bulk, 4000)
            with pytest.raises(OSError, match="too long"):
                exchange.insist(bytes(1390))
            exchange.client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of the other ones that were too large
            exchange.ask(bytes(1300))
        finally:
            way.gateway.run(["ip", "link", "set", "wan0", "mtu", "1500"], check=True)


@pytest.mark.slow
def test_a_rule_of_somebody_else_holds_within_a_second(way: Way) -> None:
    near, far = connect(way, 4)
    with near, far:
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        rules = "table inet foreign { chain c { type filter hook forward priority 0; tcp dport 7001 drop; }; }"
        way.gateway.run(["nft", "-f", "-"], stdin=rules.encode(), check=True)
        try:
            time.sleep(1.2)
            far.settimeout(1)
            near.send(b"x")
            with pytest.raises(TimeoutError):
                far.recv(1)
        finally:
            way.gateway.run(["nft", "delete", "table", "inet", "foreign"], check=True)


def lifetimes(way: Way, port: int) -> list[int]:
    """Seconds that conntrack will remember connections from that port of the client."""
    found = way.gateway.run(["conntrack", "-L", "-p", "tcp", "--orig-port-src", str(port)]).out.splitlines()
    return [int(line.split()[2]) for line in found if f"sport={port} " in line]


@pytest.mark.slow
@pytest.mark.parametrize("closing_end", ["client", "server"])
def test_the_end_of_a_connection_is_seen(way: Way, closing_end: str) -> None:
    """By reset, whose sequence number conntrack cannot check any more, and by FIN: the entry would live for days."""
    for linger in (True, False):
        way.wake()
        near, far = connect(way, 4)
        port = near.getsockname()[1]
        with near, far:
            pump(near, far)
            pump(far, near)
            assert lifetimes(way, port)
            first, second = (near, far) if closing_end == "client" else (far, near)
            if linger:
                first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            first.close()
            if linger:
                with pytest.raises(ConnectionResetError):
                    second.recv(1)
            else:
                assert second.recv(1) == b""
        assert all(seconds <= 120 for seconds in lifetimes(way, port)), linger


@pytest.mark.slow
def test_a_filter_on_an_interface_sees_each_packet(way: Way) -> None:
    way.gateway.run(["tc", "qdisc", "add", "dev", "lan0", "clsact"], check=True)
    try:
        poll(lambda: way.offloaded() == ["wan0"], "lan0 is offloaded beside a tc filter")
        assert "lan0" in way.status()["problems"]["offload"]
        before = way.forwarded()
        near, far = connect(way, 4)
        with near, far:
            pump(near, far)
        assert way.forwarded() - before >= SIZE // 1500
    finally:
        way.gateway.run(["tc", "qdisc", "del", "dev", "lan0", "clsact"], check=True)
    poll(lambda: way.offloaded() == ["lan0", "wan0"], "lan0 is not offloaded again")
    assert "offload" not in way.status()["problems"]


@pytest.mark.slow
def test_no_bulk_no_programs(way: Way) -> None:
    """Small packets, however many, pay for nothing; a flow goes on through all of it."""
    near, far = connect(way, 4)
    with near, far, Exchange(way, 4) as exchange:
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        poll(lambda: not way.status()["offloading"], "the programs stay attached", 20)
        assert way.offloaded() == ["lan0", "wan0"]
        end = time.monotonic() + 1
        while time.monotonic() < end:
            exchange.ask(bytes(200))
        assert not way.status()["offloading"]
        before = way.forwarded()
        pump(near, far, 1 << 18)
        assert way.forwarded() - before >= (1 << 18) // 1500
        shortened(way, lambda: pump(far, near), SIZE // 1500)


@pytest.mark.slow
def test_switched_off_and_on(way: Way) -> None:
    """A flow goes on, whatever way it has to go."""
    near, far = connect(way, 4)
    with near, far:
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        way.reload("off")
        before = way.forwarded()
        pump(near, far)
        assert way.forwarded() - before >= SIZE // 1500
        way.reload("auto")
        shortened(way, lambda: pump(near, far), SIZE // 1500)


@pytest.mark.slow
def test_after_sigkill_flows_go_on(way: Way) -> None:
    """Last: it kills the gateway, and `down` puts conntrack's settings back."""
    names = [f"net.netfilter.{name}" for name in ("nf_conntrack_tcp_be_liberal", "nf_conntrack_tcp_ignore_invalid_rst")]
    near, far = connect(way, 4)
    with near, far, Exchange(way, 6) as exchange:
        exchange.assure()
        shortened(way, lambda: pump(near, far), SIZE // 1500)
        shortened(way, exchange.bulk, 4000)
        os.kill(way.process.pid, signal.SIGKILL)
        way.process.wait(10)
        before = way.forwarded()
        pump(near, far)
        pump(far, near)
        exchange.bulk(100)
        assert way.forwarded() - before >= SIZE // 1500
    assert way.gateway.run(["sysctl", "-n", *names], check=True).out.split() == ["1", "1"]
    done = way.command("down")
    assert done.ok, done.err
    assert way.gateway.run(["sysctl", "-n", *names], check=True).out.split() == ["0", "0"]
