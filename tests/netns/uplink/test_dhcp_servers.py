"""The uplink against DHCP servers that we did not write: lease, renewal, rebinding, INIT-REBOOT, NAK, RELEASE."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.config.fields import Duration, Prefix
from gateway.kernel.netlink.diff import Inverse
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.kernel.netlink.undo import undo
from gateway.uplink.options import Dhcp4Options, StaticOptions, UplinkOptions
from gateway.uplink.uplinks import Uplinks

from .conftest import Net, inside, peer, sh, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

FAST = Dhcp4Options(start_delay=Duration(0), hostname="router")


class Gateway:
    """Uplinks on a monitor, inside the router's namespace. ``async with``."""

    def __init__(self, net: Net, *options: UplinkOptions, mark: int = 0) -> None:
        self.net = net
        self.options = options
        self.journal: list[Inverse] = []
        self.mark = mark
        self.release = False

    async def __aenter__(self) -> Gateway:
        self.netlink = Netlink(self.journal.append)
        await self.netlink.__aenter__()
        self.monitor = Monitor(self.netlink)
        self.task = asyncio.create_task(self.monitor.run())
        self.uplinks = Uplinks(
            self.options, self.netlink, self.monitor, self.net.tmp / "state", self.journal.append, self.mark
        )
        await self.uplinks.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.uplinks.stop(self.release)
        self.task.cancel()
        await self.netlink.__aexit__()

    @property
    def lease(self) -> Any:
        return self.uplinks["wan"].snapshot.lease

    async def ready(self) -> Any:
        await until(lambda: self.uplinks["wan"].snapshot.ready and self.lease, 40)
        return self.lease

    @property
    def machine(self) -> Any:
        client = self.uplinks["wan"]._client
        assert client is not None
        return client.machine


def uplink(**change: Any) -> UplinkOptions:
    return UplinkOptions(**({"interface": "wan", "dhcp4": FAST} | change))


def dnsmasq(net: Net, t1: int = 300, t2: int = 500, extra: tuple[str, ...] = (), first: int = 100) -> Any:
    return net.start(
        net.isp, peer("dnsmasq"), "-k", "--conf-file=/dev/null", "--port=0", "--interface=isp0", "--bind-interfaces",
        f"--dhcp-range=192.0.2.{first},192.0.2.{first + 50},255.255.255.0,10m", "--no-ping",
        "--dhcp-authoritative", "--user=root",
        f"--dhcp-leasefile={net.tmp}/dnsmasq.leases", f"--dhcp-option=option:T1,{t1}", f"--dhcp-option=option:T2,{t2}",
        "--dhcp-option=option:router,192.0.2.1", "--dhcp-option=option:dns-server,192.0.2.1,192.0.2.53",
        "--dhcp-option=option:domain-search,example.com,sub.example.com", "--log-dhcp", *extra,
    )  # fmt: skip


def kea(net: Net, t1: int = 300, first: int = 100) -> Any:
    pool = f"192.0.2.{first} - 192.0.2.{first + 50}"
    config = {
        "Dhcp4": {
            "interfaces-config": {"interfaces": ["isp0"], "dhcp-socket-type": "raw"},
            "lease-database": {"type": "memfile", "persist": True, "name": f"{net.tmp}/kea.csv", "lfc-interval": 0},
            "valid-lifetime": 600, "renew-timer": t1, "rebind-timer": 500, "calculate-tee-times": False,
            "authoritative": True,
            "subnet4": [{
                "id": 1, "subnet": "192.0.2.0/24", "pools": [{"pool": pool}],
                "option-data": [
                    {"name": "routers", "data": "192.0.2.1"}, {"name": "domain-name-servers", "data": "192.0.2.1"},
                ],
            }],
            "loggers": [{"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}],
        },
    }  # fmt: skip
    path = net.tmp / "kea.json"
    path.write_text(json.dumps(config))
    program = Path(peer("kea-dhcp4"))
    environment = {
        "KEA_PIDFILE_DIR": str(net.tmp), "KEA_LOCKFILE_DIR": str(net.tmp), "KEA_LOGGER_DESTINATION": "stdout",
        "LD_LIBRARY_PATH": str(program.parents[1] / "lib/x86_64-linux-gnu"),
    }  # fmt: skip
    return net.start(net.isp, str(program), "-c", str(path), env=environment)


def dhcpd(net: Net, t1: int = 300, first: int = 100) -> Any:
    # Without its cache: in the first quarter of a lease it would give what is left, in whole seconds, of the old one.
    path = net.tmp / "dhcpd.conf"
    path.write_text(
        f"""authoritative; default-lease-time 600; max-lease-time 600; ping-check off;
        dhcp-cache-threshold 0;
        option dhcp-renewal-time {t1}; option dhcp-rebinding-time 500;
        subnet 192.0.2.0 netmask 255.255.255.0 {{ range 192.0.2.{first} 192.0.2.{first + 50}; option routers 192.0.2.1;
          option domain-name-servers 192.0.2.1; option domain-name "example.com"; }}"""
    )
    leases = net.tmp / "dhcpd.leases"
    leases.touch()
    return net.start(
        net.isp, peer("dhcpd"), "-f", "-d", "-4", "-cf", str(path), "-lf", str(leases),
        "-pf", str(net.tmp / "dhcpd.pid"), "isp0"
    )  # fmt: skip


def udhcpd(net: Net, t1: int = 300, first: int = 100) -> Any:
    path = net.tmp / "udhcpd.conf"
    path.write_text(
        f"start 192.0.2.{first}\nend 192.0.2.{first + 50}\ninterface isp0\nmin_lease 10\n"
        f"lease_file {net.tmp}/udhcpd.leases\n"
        f"pidfile {net.tmp}/udhcpd.pid\noption subnet 255.255.255.0\noption router 192.0.2.1\noption dns 192.0.2.1\n"
        "option lease 600\noption search example.com sub.example.com\n"
        f"option 0x3a {t1:08x}\noption 0x3b 000001f4\n"
        "option staticroutes 198.51.100.0/24 192.0.2.7, 0.0.0.0/0 192.0.2.1\n"
    )
    (net.tmp / "udhcpd.leases").touch()
    return net.start(net.isp, peer("busybox"), "udhcpd", "-f", str(path))


Server = Callable[..., Any]
SERVERS = [
    pytest.param(server, id=server.__name__, marks=pytest.mark.peer(server.__name__))
    for server in (dnsmasq, kea, dhcpd, udhcpd)
]


@pytest.fixture
def capture(net: Net) -> Iterator[Callable[[], list[Any]]]:
    """What passes the ISP's end, as scapy packets."""
    from scapy.sendrecv import AsyncSniffer  # noqa: F401  (import cost outside the test's clock)
    from scapy.utils import rdpcap

    path = net.tmp / "capture.pcap"
    tool = net.start(net.isp, peer("tcpdump"), "-Z", "root", "-i", "isp0", "-U", "-w", str(path), "ip")
    inside(net.router, lambda: until(lambda: path.exists() and path.stat().st_size >= 24))
    yield lambda: list(rdpcap(str(path)))
    net.stop(tool)


@pytest.mark.parametrize("server", SERVERS)
def test_lease_reboot_release(net: Net, server: Server) -> None:
    process = server(net)

    async def first() -> Any:
        async with Gateway(net, uplink()) as gateway:
            lease = await gateway.ready()
            assert int(lease.address) & 0xFF >= 100
            assert str(lease.routers[0]) == "192.0.2.1"
            assert str(gateway.uplinks.servers("wan")[0]) == "192.0.2.1"
            assert gateway.uplinks.servers() == gateway.uplinks.servers("auto") == gateway.uplinks.servers("wan")
            text = net.ip(net.router, "-4", "addr", "show", "wan")
            assert f"{lease.address}/24" in text
            assert 500 < int(text.split("valid_lft ")[1].split("sec")[0]) <= 600
            route = net.ip(net.router, "route", "show", "default")
            assert f"default via 192.0.2.1 dev wan proto dhcp src {lease.address} metric 1000" in route
            return lease

    lease = inside(net.router, first)
    assert f"{lease.address}/24" in net.ip(net.router, "addr")  # it stands
    monitor = net.start(net.router, "ip", "monitor", "address", "route")

    async def again() -> list[Inverse]:
        """The next start adopts: same address, same lifetime line refreshed in place, nothing deleted."""
        async with Gateway(net, uplink()) as gateway:
            now = await gateway.ready()
            assert now.address == lease.address
            assert now.expiry > lease.expiry
            assert gateway.machine.dropped.total() == 0
            gateway.release = True
            log = (net.tmp / f"ip-{net.children.index(monitor)}.log").read_text()
            assert "Deleted" not in log
            return gateway.journal

    inside(net.router, again)
    assert str(lease.address) not in net.ip(net.router, "addr")
    assert not net.ip(net.router, "route")
    assert not list((net.tmp / "state").glob("*.lease.json"))
    net.stop(process)


@pytest.mark.parametrize("server", SERVERS)
def test_renewal_is_unicast_and_silent(net: Net, server: Server, capture: Callable[[], list[Any]]) -> None:
    """T1 of five seconds: the renewal is one REQUEST and one ACK, unicast, and no ICMP goes back."""
    from scapy.layers.dhcp import DHCP
    from scapy.layers.inet import ICMP, IP

    server(net, t1=5)

    async def main() -> None:
        async with Gateway(net, uplink(), mark=0xF8000000) as gateway:
            lease = await gateway.ready()
            assert gateway.uplinks["wan"]._client.rim.port._raw is None  # type: ignore[union-attr]
            assert "192.0.2" in sh("ss", "-unlH")
            await until(lambda: gateway.lease.expiry > lease.expiry, 20)
            assert gateway.lease.address == lease.address
            assert gateway.machine.state.value == "bound"

    inside(net.router, main)

    def renewal() -> Any:
        """The first REQUEST to the server itself and what came after it; the capture may have begun after DISCOVER."""
        told = [p for p in capture() if DHCP in p]
        first = next((n for n, p in enumerate(told) if p[IP].dst == "192.0.2.1"), len(told))
        return told[first : first + 2] if len(told) >= first + 2 else None

    renew = inside(net.router, lambda: until(renewal, 5))
    packets = capture()
    assert [next(o[1] for o in p[DHCP].options if o[0] == "message-type") for p in renew] == [3, 5]
    assert renew[0][IP].src == renew[1][IP].dst != "255.255.255.255"
    assert not [p for p in packets if ICMP in p and p[ICMP].type == 3]


@pytest.mark.parametrize("server", SERVERS)
def test_foreign_address_is_refused(net: Net, server: Server) -> None:
    """INIT-REBOOT with an address that this server does not have: NAK, pause, DISCOVER; the old address goes."""
    process = dnsmasq(net, first=10)

    async def main() -> Any:
        async with Gateway(net, uplink()) as gateway:
            return await gateway.ready()

    old = inside(net.router, main)
    net.stop(process)
    net.ip(net.isp, "addr", "flush", "dev", "isp0")
    net.ip(net.isp, "addr", "add", "192.0.2.1/24", "dev", "isp0")
    path = net.tmp / "state/wan.lease.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"address": "198.51.100.7/24"}))
    server(net)

    async def again() -> Any:
        async with Gateway(net, uplink()) as gateway:
            return await gateway.ready()

    new = inside(net.router, again)
    assert int(new.address) & 0xFF >= 100
    text = net.ip(net.router, "-4", "addr", "show", "wan")
    assert str(old.address) not in text
    assert f"{new.address}/24" in text


@pytest.mark.peer("dnsmasq")
def test_silent_server_then_rebind(net: Net) -> None:
    process = dnsmasq(net, t1=5, t2=9)

    async def main() -> None:
        async with Gateway(net, uplink()) as gateway:
            lease = await gateway.ready()
            net.stop(process)
            await until(lambda: gateway.machine.state.value == "rebinding", 30)
            assert gateway.lease == lease
            assert str(lease.address) in net.ip(net.router, "addr")
            dnsmasq(net)
            # The next REBIND would be a minute away; carrier asks at once.
            net.ip(net.isp, "link", "set", "isp0", "down")
            await until(lambda: not gateway.uplinks["wan"].snapshot.carrier)
            net.ip(net.isp, "link", "set", "isp0", "up")
            await until(lambda: gateway.lease.expiry > lease.expiry, 30)
            assert gateway.lease.address == lease.address

    inside(net.router, main)


@pytest.mark.peer("udhcpd")
def test_classless_routes_and_search(net: Net) -> None:
    udhcpd(net)

    async def main() -> None:
        async with Gateway(net, uplink()) as gateway:
            await gateway.ready()
            assert "198.51.100.0/24 via 192.0.2.7 dev wan proto dhcp" in net.ip(net.router, "route")
            assert gateway.uplinks.search() == ("example.com", "sub.example.com")

    inside(net.router, main)


@pytest.mark.peer("dnsmasq")
def test_late_interface_static_ipv6_reload_and_undo(net: Net) -> None:
    """The interface comes after the start; IPv6 static beside DHCP; a reload that changes nothing sends nothing."""
    net.unplug()
    static = StaticOptions(address=[Prefix.parse("2001:db8::2/64")], gateway=["2001:db8::1"], dns=["2001:db8::53"])
    options = uplink(static=static)

    async def main() -> list[Inverse]:
        async with Gateway(net, options) as gateway:
            changes: list[int] = []
            gateway.uplinks.watch(lambda: changes.append(1))
            await until(lambda: gateway.uplinks["wan"].snapshot.problem == "interface is absent")
            assert gateway.uplinks.servers() == ()
            net.plug()
            dnsmasq(net)
            lease = await gateway.ready()
            gateway.uplinks.forward()
            assert Path("/proc/sys/net/ipv6/conf/wan/accept_ra").read_text().strip() == "2"
            assert "default via 2001:db8::1 dev wan proto 238 metric 1000" in net.ip(net.router, "-6", "route")
            assert [str(ip) for ip in gateway.uplinks.servers()] == ["2001:db8::53", "192.0.2.1", "192.0.2.53"]
            machine, sent = gateway.machine, len(gateway.machine._times)
            await gateway.uplinks.reload([uplink(static=static)])
            await asyncio.sleep(0.5)
            assert gateway.lease is lease
            assert gateway.machine is machine
            assert len(machine._times) == sent  # nothing was sent
            assert changes
            # Another metric moves the routes, the lease stays as it is.
            await gateway.uplinks.reload([uplink(static=static, metric=50)])
            await until(lambda: "metric 50" in net.ip(net.router, "route"))
            assert "metric 1000" not in net.ip(net.router, "route")
            assert gateway.lease.address == lease.address
            # Renamed cable: the same interface made anew.
            net.unplug()
            await until(lambda: not gateway.uplinks["wan"].snapshot.carrier)
            assert gateway.uplinks.elected is None
            net.plug()
            await gateway.ready()
            assert gateway.lease.address == lease.address
            return gateway.journal

    journal = inside(net.router, main)

    async def down() -> None:
        for step in reversed(journal):
            await undo(step)

    inside(net.router, down)
    assert "inet" not in net.ip(net.router, "addr", "show", "wan")
    assert not net.ip(net.router, "route")
    assert inside(net.router, _forwarding) == "0"


async def _forwarding() -> str:
    return Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()


@pytest.mark.peer("dnsmasq")
def test_operator_takes_the_link_down_and_up(net: Net) -> None:
    """While nobody answers, and too quickly for a look in between: the client still hears the server later."""

    async def main() -> None:
        async with Gateway(net, uplink()) as gateway:
            await until(lambda: gateway.uplinks["wan"]._client and gateway.machine.state.value == "selecting")
            net.ip(net.router, "link", "set", "wan", "down")
            net.ip(net.router, "link", "set", "wan", "up")
            dnsmasq(net)
            await gateway.ready()
            net.ip(net.router, "link", "set", "wan", "down")
            await until(lambda: not gateway.uplinks["wan"].snapshot.carrier)
            net.ip(net.router, "link", "set", "wan", "up")
            await gateway.ready()  # the kernel took the routes away; they are back
            await until(lambda: "default" in net.ip(net.router, "route"))

    inside(net.router, main)


@pytest.mark.peer("dnsmasq")
def test_leaving_the_configuration(net: Net) -> None:
    dnsmasq(net)

    async def main() -> None:
        async with Gateway(net, uplink()) as gateway:
            await gateway.ready()
            await gateway.uplinks.reload([])
            assert gateway.uplinks.snapshots == ()
            assert "inet " not in net.ip(net.router, "addr", "show", "wan")

    inside(net.router, main)


def test_external(net: Net) -> None:
    """Somebody else configures the interface; we see it and touch nothing."""

    async def main() -> None:
        async with Gateway(net, UplinkOptions(interface="wan", external=True)) as gateway:
            await until(lambda: gateway.uplinks["wan"].snapshot.problem == "no carrier")
            net.ip(net.router, "link", "set", "wan", "up")
            net.ip(net.router, "addr", "add", "192.0.2.77/24", "dev", "wan")
            net.ip(net.router, "route", "add", "default", "via", "192.0.2.1")
            await until(lambda: gateway.uplinks["wan"].snapshot.ready)
            assert gateway.uplinks.elected is not None
            assert gateway.uplinks.elected.addresses == ("192.0.2.77/24",)
            net.ip(net.router, "route", "del", "default")
            await until(lambda: gateway.uplinks.elected is None)
            assert gateway.journal == []

    inside(net.router, main)
    assert "192.0.2.77/24" in net.ip(net.router, "addr")
