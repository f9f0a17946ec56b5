"""The LAN side with a real dnsmasq: addresses, leases, names, RA; it survives us, is adopted, restarted, and undone."""

from __future__ import annotations

import asyncio
import os
import signal
from ipaddress import ip_address
from typing import Any

import pytest

from gateway.config.fields import Prefix
from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.kernel.netlink.diff import Inverse
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.kernel.netlink.undo import undo
from gateway.uplink.dnsmasq import daemon, render
from gateway.uplink.lan import Lans
from gateway.uplink.options import DhcpHost, DhcpServerOptions, LanOptions

from .conftest import Net, inside, peer, sh, until

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq")]

PRINTER = DhcpHost(mac="02:00:00:00:00:77", address="192.168.8.7", name="printer")
SERVER = DhcpServerOptions(range=["192.168.8.100", "192.168.8.199"], hosts=[PRINTER])
# The cable's router end is named wan; here it leads to the LAN's only host.
LAN = LanOptions(
    interface="wan", address=[Prefix.parse("192.168.8.1/24"), Prefix.parse("2001:db8:8::1/64")], dhcp_server=SERVER
)


class Side:
    """LANs on a monitor. ``async with``."""

    def __init__(self, net: Net, *options: LanOptions) -> None:
        self.net, self.options = net, options
        self.journal: list[dict[str, Any]] = []
        self.upstream: tuple[IP, ...] = (ip_address("198.51.100.53"),)

    async def __aenter__(self) -> Side:
        self.netlink = Netlink(self.journal.append)
        await self.netlink.__aenter__()
        monitor = Monitor(self.netlink)
        self.task = asyncio.create_task(monitor.run())
        # dnsmasq reads its servers as another user: pytest's own folders must be passable.
        for folder in (self.net.tmp, *self.net.tmp.parents[:-2]):
            folder.chmod(0o755)
        self.lans = Lans(
            self.options, self.netlink, monitor, self.net.tmp / "run", self.net.tmp / "state", self.journal.append,
            lambda: self.upstream, program=peer("dnsmasq"),
        )  # fmt: skip
        await self.lans.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.lans.stop()
        self.task.cancel()
        await self.netlink.__aexit__()

    @property
    def pid(self) -> int:
        return self.lans.daemon.pid


async def down(journal: list[Inverse]) -> None:
    for step in reversed(journal):
        if step["kind"] == "process":
            await asyncio.to_thread(daemon.undo, step)
        else:
            await undo(step)


def dig(net: Net, *words: str) -> str:
    return sh(
        "ip", "netns", "exec", net.isp, "dig", "+time=1", "+tries=1", "+short", "@192.168.8.1", *words, check=False
    ).strip()


def test_lan_serves_and_outlives(net: Net) -> None:
    net.ip(net.isp, "addr", "flush", "dev", "isp0")
    net.ip(net.isp, "link", "set", "isp0", "address", "02:00:00:00:00:77")

    async def first() -> tuple[int, list[Any]]:
        async with Side(net, LAN) as side:
            assert side.lans.problems == {}
            await until(lambda: "192.168.8.1/24" in net.ip(net.router, "addr", "show", "wan"))
            client = net.start(
                net.isp, peer("busybox"), "udhcpc", "-f", "-i", "isp0", "-s", "/bin/true", "-q", "-n", "-t", "8"
            )
            await until(lambda: client.poll() is not None, 60)
            assert client.returncode == 0
            assert "192.168.8.7" in (net.tmp / "state/dnsmasq.leases").read_text()
            net.ip(net.isp, "addr", "add", "192.168.8.7/24", "dev", "isp0")
            assert dig(net, "printer.lan") == "192.168.8.7"
            assert dig(net, "gateway.lan").split() == ["192.168.8.1"]
            # RA: the host makes itself an address within the prefix.
            await until(lambda: "2001:db8:8:" in net.ip(net.isp, "-6", "addr", "show", "isp0"), 40)
            await until(lambda: "default via fe80:" in net.ip(net.isp, "-6", "route"), 20)
            return side.pid, side.journal

    pid, journal = inside(net.router, first)
    assert os.path.exists(f"/proc/{pid}")
    assert dig(net, "printer.lan") == "192.168.8.7"  # we are gone, names go on

    async def second() -> list[Any]:
        async with Side(net, LAN) as side:
            assert side.pid == pid  # adopted
            await side.lans.reload([LAN])
            assert side.pid == pid
            os.kill(pid, signal.SIGKILL)
            await until(lambda: side.pid != pid and dig(net, "gateway.lan"), 20)
            other = LanOptions(interface="wan", address=LAN.address, dhcp_server=SERVER, domain="home.arpa")
            before = side.pid
            await side.lans.reload([other])
            assert side.pid != before
            await until(lambda: dig(net, "gateway.home.arpa") == "192.168.8.1", 20)
            return side.journal

    journal += inside(net.router, second)
    assert len([step for step in journal if step["kind"] == "process"]) == 2
    inside(net.router, lambda: down(journal))
    assert not sh("ip", "netns", "pids", net.router).strip()
    assert "192.168.8.1" not in net.ip(net.router, "addr")
    inside(net.router, lambda: down(journal))


def test_upstream_follows_the_lease(net: Net) -> None:
    """The upstream file is rewritten; a resolver on the new address is asked from then on."""

    async def main() -> None:
        async with Side(net, LanOptions(interface="wan", address=[Prefix.parse("192.0.2.2/24")])) as side:
            await until(lambda: "192.0.2.2/24" in net.ip(net.router, "addr", "show", "wan"))
            net.start(
                net.isp, peer("dnsmasq"), "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
                "--address=/example.com/203.0.113.80", "--listen-address=192.0.2.1", "--bind-interfaces", "--pid-file",
            )  # fmt: skip
            ask = ("ip", "netns", "exec", net.isp, "dig", "+time=1", "+tries=1", "+short", "@192.0.2.2", "example.com")
            side.upstream = (ip_address("192.0.2.2"), ip_address("192.0.2.1"))  # itself would be a loop
            side.lans.refresh()
            await until(lambda: sh(*ask, check=False).strip() == "203.0.113.80", 20)
            assert side.lans.daemon.servers.read_text() == "nameserver 192.0.2.1\n"
            side.upstream = ()
            side.lans.refresh()
            assert sh(*ask).strip() == "203.0.113.80"  # nothing better is known: the last ones stay
            await down([step for step in side.journal if step["kind"] == "process"])

    inside(net.router, main)


def test_refused_configuration(net: Net) -> None:
    async def main() -> None:
        one = daemon.Daemon(net.tmp / "run", net.tmp / "state", lambda step: None, program=peer("dnsmasq"))
        with pytest.raises(KernelError, match="bad option"):
            await one.start("no-such-option=1\n")
        two = daemon.Daemon(net.tmp / "run", net.tmp / "state", lambda step: None, program="/nowhere/dnsmasq")
        with pytest.raises((KernelError, OSError)):
            await two.start("port=0\n")

    inside(net.router, main)


@pytest.mark.slow
def test_a_dnsmasq_that_does_not_stay_is_told(net: Net) -> None:
    """Somebody else has its port; then he goes."""
    words = ["-k", "--conf-file=/dev/null", "--no-resolv", "--user=root", "--pid-file", "--port=5353"]
    other = net.start(net.router, peer("dnsmasq"), *words)
    inside(net.router, lambda: until(lambda: ":5353" in sh("ip", "netns", "exec", net.router, "ss", "-lun"), 5))

    async def main() -> None:
        one = daemon.Daemon(net.tmp / "run", net.tmp / "state", lambda step: None, program=peer("dnsmasq"))
        await one.start("port=5353\nno-resolv\n")
        try:
            await until(lambda: "ends as soon as it is started: " in one.problem, 5)
            assert "Address already in use" in one.problem
            net.stop(other)
            await until(lambda: not one.problem, 20)
            os.kill(one.pid, signal.SIGKILL)
            await until(lambda: one.problem == "it has ended", 5)
            await until(lambda: not one.problem, 20)
        finally:
            await one.stop()
            daemon.undo({"argument": daemon.argument_of(net.tmp / "run")})

    inside(net.router, main)


PATHS = {"servers": "/run/x/resolv.conf", "leases": "/run/x/leases", "log": "/run/x/log"}


@pytest.mark.parametrize(
    "lans", [[], [LAN], [LAN, LanOptions(interface="guest", address=[Prefix.parse("192.168.9.1/24")], ra="off")]]
)
def test_configuration_is_valid(lans: list[LanOptions], tmp_path: Any) -> None:
    path = tmp_path / "dnsmasq.conf"
    path.write_text(render.config(lans, **PATHS))
    assert "OK" in sh("sh", "-c", f"{peer('dnsmasq')} --test --conf-file={path} 2>&1")
