"""The reconciler, the undoing of its steps and the link monitor against the running kernel."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gateway.core.errors import KernelError
from gateway.kernel import journal, mark, sysctl
from gateway.kernel.journal import Journal
from gateway.kernel.netlink.diff import DHCP, Address, Route
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink
from gateway.kernel.netlink.session import Session
from gateway.kernel.netlink.undo import undo

from .conftest import Net, inside, until

pytestmark = pytest.mark.root

V4 = Address("wan", ip_address("192.0.2.9"), 24, 3600, 3600)
V6 = Address("wan", ip_address("2001:db8::9"), 64)
DEFAULT = Route("wan", ip_network("0.0.0.0/0"), ip_address("192.0.2.1"), 100, proto=DHCP, source=V4.ip)
DEFAULT6 = Route("wan", ip_network("::/0"), ip_address("2001:db8::1"), 100)
OFF_LINK = Route("wan", ip_network("198.51.100.0/24"), ip_address("203.0.113.1"), 100, proto=DHCP, onlink=True)


def state(net: Net) -> tuple[str, ...]:
    routes = ("route", "show", "table", "all")
    wanted = (("rule",), ("-6", "rule"), routes, ("-6", *routes), ("addr",))
    return tuple(net.ip(net.router, *words) for words in wanted)


async def replay(journal: list[dict[str, Any]]) -> None:
    for step in reversed(journal):
        await undo(json.loads(json.dumps(step)))


def test_apply_and_undo(net: Net) -> None:
    net.ip(net.router, "link", "set", "wan", "up")
    net.ip(net.router, "addr", "add", "203.0.113.77/32", "dev", "wan")
    net.ip(net.router, "route", "add", "203.0.113.128/25", "dev", "wan", "metric", "100")
    inside(net.router, lambda: until(lambda: "tentative" not in net.ip(net.router, "addr"), 10))
    before = state(net)
    journal: list[dict[str, Any]] = []

    async def main() -> None:
        async with Netlink(journal.append) as netlink:
            want = (V4, V6), (DEFAULT, DEFAULT6, OFF_LINK)
            assert await netlink.reconcile("wan", *want) == 5
            assert await netlink.reconcile("wan", *want) == 0
            await netlink.steer()
            await netlink.steer()
            assert set(await netlink.addresses("wan")) >= {V6}
            await netlink.reconcile("wan", (Address("wan", V4.ip, 24, 7200, 7100), V6), want[1])

    inside(net.router, main)
    text = net.ip(net.router, "addr", "show", "wan")
    assert "192.0.2.9/24" in text
    assert "valid_lft 7200sec preferred_lft 7100sec" in text or "valid_lft 7199sec" in text
    assert "default via 192.0.2.1 dev wan proto dhcp src 192.0.2.9 metric 100" in net.ip(net.router, "route")
    assert "198.51.100.0/24 via 203.0.113.1 dev wan proto dhcp metric 100 onlink" in net.ip(net.router, "route")
    assert "default via 2001:db8::1 dev wan proto 238 metric 100" in net.ip(net.router, "-6", "route")
    for family in ("-4", "-6"):
        assert f"{mark.RULE_PRIORITY}:\tfrom all fwmark 0x1000000/0x1000000 lookup 2380" in net.ip(
            net.router, family, "rule"
        )
        assert "local default dev lo" in net.ip(net.router, family, "route", "show", "table", "2380")
    assert len(journal) == 5 + 4
    inside(net.router, lambda: replay(journal))
    inside(net.router, lambda: replay(journal))  # all gone already
    assert state(net) == before


def test_another_lease_replaces_without_a_gap(net: Net) -> None:
    """Address and gateway change within the same network; what others put there stays."""
    net.ip(net.router, "link", "set", "wan", "up")
    # An address beside ours: with the last one the kernel itself takes every IPv4 route away.
    net.ip(net.router, "addr", "add", "203.0.113.77/32", "dev", "wan")
    net.ip(net.router, "route", "add", "203.0.113.0/24", "dev", "wan", "metric", "7")
    before = net.ip(net.router, "route")
    other = Address("wan", ip_address("192.0.2.10"), 24, 600, 600)
    via = Route("wan", ip_network("0.0.0.0/0"), ip_address("192.0.2.2"), 100, proto=DHCP, source=other.ip)

    async def main() -> None:
        async with Netlink() as netlink:
            sysctl.write("net/ipv4/conf/wan/promote_secondaries", 1, lambda step: None)
            await netlink.reconcile("wan", (V4,), (DEFAULT, OFF_LINK))
            monitor = await asyncio.create_subprocess_exec("ip", "monitor", "route", stdout=asyncio.subprocess.PIPE)
            await asyncio.sleep(0.3)
            await netlink.reconcile("wan", (other,), (via, OFF_LINK))
            await asyncio.sleep(0.3)
            monitor.terminate()
            seen = (await monitor.communicate())[0].decode()
            assert "Deleted default via" not in seen
            await netlink.reconcile("wan", (), ())

    inside(net.router, main)
    assert net.ip(net.router, "route") == before


def as_linux_6_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag of an IPv4 address that is there cannot be changed."""
    write = Session._address

    async def address(self: Session, verb: str, item: Address, index: int) -> None:
        await write(self, verb, replace(item, proto=0) if verb == "replace" and item.ip.version == 4 else item, index)

    monkeypatch.setattr(Session, "_address", address)


@pytest.mark.parametrize("tags", [True, False])
def test_foreign_address_is_given_back(net: Net, monkeypatch: pytest.MonkeyPatch, tags: bool) -> None:
    if not tags:
        as_linux_6_1(monkeypatch)
    net.ip(net.router, "link", "set", "wan", "up")
    net.ip(net.router, "addr", "add", "192.0.2.9/24", "dev", "wan")
    before = net.ip(net.router, "-4", "addr")
    journal: list[dict[str, Any]] = []

    async def main() -> None:
        async with Netlink(journal.append) as netlink:
            await netlink.reconcile("wan", (V4,), ())
            assert "valid_lft forever" not in net.ip(net.router, "-4", "addr", "show", "wan")
            (tag,) = [item.proto for item in await netlink.addresses("wan") if item.ip == V4.ip]
            assert (tag == mark.PROTO) is tags
            assert await netlink.reconcile("wan", (V4,), ()) == 0
        await replay(journal)

    inside(net.router, main)
    assert net.ip(net.router, "-4", "addr") == before


def test_what_was_taken_over_untagged_and_brought_anew_is_somebody_elses(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_linux_6_1(monkeypatch)
    net.ip(net.router, "link", "set", "wan", "up")
    net.ip(net.router, "addr", "add", "192.0.2.9/24", "dev", "wan")

    async def main() -> None:
        async with Netlink() as netlink:
            await netlink.reconcile("wan", (V4,), ())
            net.ip(net.router, "addr", "del", "192.0.2.9/24", "dev", "wan")
            assert await netlink.reconcile("wan", (), ()) == 0
            net.ip(net.router, "addr", "add", "192.0.2.9/24", "dev", "wan")
            assert await netlink.reconcile("wan", (), ()) == 0

    inside(net.router, main)
    assert "192.0.2.9/24" in net.ip(net.router, "addr")


def test_foreign_route_in_the_way(net: Net) -> None:
    net.ip(net.router, "link", "set", "wan", "up")
    net.ip(net.router, "addr", "add", "192.0.2.50/24", "dev", "wan")
    net.ip(net.router, "route", "add", "default", "via", "192.0.2.3", "metric", "100")

    async def main() -> None:
        async with Netlink() as netlink:
            with pytest.raises(KernelError, match="exists"):
                await netlink.reconcile("wan", (V4,), (DEFAULT,))
            with pytest.raises(KernelError):
                await netlink.reconcile("absent", (), ())

    inside(net.router, main)
    assert "default via 192.0.2.3" in net.ip(net.router, "route")


def test_link_and_sysctl(net: Net) -> None:
    journal: list[dict[str, Any]] = []

    async def main() -> None:
        async with Netlink(journal.append) as netlink:
            await netlink.set_link("wan", up=True, mtu=1400)
            await netlink.set_link("wan", up=True, mtu=1400)
            assert (await netlink.links())["wan"].mtu == 1400
        assert sysctl.write("net/ipv6/conf/wan/accept_ra", 2, journal.append)
        assert not sysctl.write("net/ipv6/conf/wan/accept_ra", 2, journal.append)
        assert sysctl.read("net/ipv6/conf/wan/accept_ra") == "2"
        assert len(journal) == 3
        await replay(journal)
        assert sysctl.read("net/ipv6/conf/wan/accept_ra") == "1"
        async with Netlink() as netlink:
            link = (await netlink.links())["wan"]
            assert (link.mtu, link.up) == (1500, False)

    inside(net.router, main)


@pytest.mark.parametrize("crash", [False, True])
def test_a_parameter_written_twice_gets_its_first_value_back(net: Net, crash: bool) -> None:
    name = "net/ipv6/conf/wan/hop_limit"

    async def main() -> None:
        book = Journal(net.tmp / "run")
        first = sysctl.read(name)
        sysctl.write(name, 61, book.record)
        if crash:  # recorded, and then not written
            book.record({"kind": "sysctl", "op": "set", "name": name, "value": "61", "was": "62"})
        else:
            sysctl.write(name, 62, book.record)
        assert await journal.replay(book.path, {"sysctl": undo}) == []
        assert sysctl.read(name) == first
        sysctl.write(name, 61, (other := Journal(net.tmp / "run")).record)
        sysctl.path_of(name).write_text("70")  # somebody else since: left alone
        assert await journal.replay(other.path, {"sysctl": undo}) == []
        assert sysctl.read(name) == "70"

    inside(net.router, main)


def test_monitor(net: Net) -> None:
    """Appearing, carrier, leaving; then a burst that overflows the bells while the loop is blocked."""
    net.unplug()

    async def main() -> None:
        async with Netlink() as netlink:
            monitor = Monitor(netlink)
            seen: list[frozenset[str]] = []
            monitor.watch(seen.append)
            moved: list[int] = []
            monitor.watch_addresses(lambda: moved.append(1))
            task = asyncio.create_task(monitor.run())
            async with asyncio.timeout(10):
                await monitor.ready.wait()
            assert "wan" not in monitor.links
            net.plug()
            await until(lambda: "wan" in monitor.links)
            net.ip(net.router, "link", "set", "wan", "up")
            await until(lambda: monitor.links["wan"].ready)
            net.ip(net.isp, "link", "set", "isp0", "down")
            await until(lambda: not monitor.links["wan"].carrier)
            batch = "".join(f"route add 198.51.{i // 250}.{i % 250 + 1}/32 dev wan\n" for i in range(3000))
            (net.tmp / "batch").write_text("".join(f"link set wan mtu {1000 + i % 400}\n" for i in range(3000)) + batch)
            net.ip(net.isp, "link", "set", "isp0", "up")
            net.ip(net.router, "-batch", str(net.tmp / "batch"))  # blocks the loop
            net.ip(net.router, "link", "set", "wan", "mtu", "1444")
            began = time.monotonic()
            await until(lambda: monitor.links["wan"].mtu == 1444 and monitor.links["wan"].carrier, step=0.01)
            assert time.monotonic() - began < 5
            assert moved
            net.unplug()
            await until(lambda: "wan" not in monitor.links)
            task.cancel()

    inside(net.router, main)
