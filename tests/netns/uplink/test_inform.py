"""DHCPINFORM on an external uplink, against DHCP servers that we did not write; port 68 is free before and after."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import pytest

from gateway.uplink.options import UplinkOptions

from .conftest import Net, inside, until
from .test_dhcp_servers import Gateway, Server, dhcpd, dnsmasq, kea, udhcpd

pytestmark = [pytest.mark.root, pytest.mark.slow]

BOTH = ("example.com", "sub.example.com")
SERVERS = [
    pytest.param(server, dns, search, id=server.__name__, marks=pytest.mark.peer(server.__name__))
    for server, dns, search in (
        (dnsmasq, ("192.0.2.1", "192.0.2.53"), BOTH),
        (kea, ("192.0.2.1",), ()),
        (dhcpd, ("192.0.2.1",), ("example.com",)),
        (udhcpd, ("192.0.2.1",), BOTH),
    )
]


def external(**change: Any) -> UplinkOptions:
    return UplinkOptions(interface="wan", external=True, **change)


def by_hand(net: Net, address: str = "192.0.2.77") -> None:
    net.ip(net.router, "link", "set", "wan", "up")
    net.ip(net.router, "addr", "add", f"{address}/24", "dev", "wan")
    net.ip(net.router, "route", "replace", "default", "via", "192.0.2.1")


def whole_port() -> socket.socket:
    """Port 68 of every address, shared with nobody. Raises OSError where anybody has a part of it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind(("0.0.0.0", 68))
    except OSError:
        sock.close()
        raise
    return sock


def received(sock: socket.socket) -> bytes:
    """The next datagram of a non-blocking socket, empty where there is none."""
    try:
        return sock.recv(4096)
    except BlockingIOError:
        return b""


def servers(gateway: Gateway) -> tuple[str, ...]:
    return tuple(str(ip) for ip in gateway.uplinks.servers())


def inquiry(gateway: Gateway) -> Any:
    enquirer = gateway.uplinks["wan"]._enquirer
    return enquirer.inquiry if enquirer is not None else None


@pytest.mark.parametrize(("server", "dns", "search"), SERVERS)
def test_names_arrive_and_the_port_goes_back(
    net: Net, server: Server, dns: tuple[str, ...], search: tuple[str, ...]
) -> None:
    server(net)
    by_hand(net)

    async def main() -> None:
        async with Gateway(net, external(), mark=0xF8000000) as gateway:
            await until(lambda: servers(gateway) == dns, 60)
            assert gateway.uplinks.search() == search
            await until(lambda: gateway.uplinks["wan"].snapshot.ready)
            assert gateway.uplinks["wan"].snapshot.problem == ""
            assert gateway.lease is None
            whole_port().close()
            assert gateway.journal == []
            # Another address: what the old one was told goes, and it is asked for anew.
            net.ip(net.router, "addr", "flush", "dev", "wan")
            await until(lambda: servers(gateway) == ())
            by_hand(net, "192.0.2.78")
            await until(lambda: servers(gateway) == dns, 60)
            assert str(inquiry(gateway).names.address) == "192.0.2.78"
            whole_port().close()

    inside(net.router, main)
    assert "192.0.2.78/24" in net.ip(net.router, "addr")


@pytest.mark.peer("dnsmasq")
def test_a_taken_port_is_waited_for(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    """Two tries fail and are told of once; the owner goes on undisturbed; then the names come."""
    dnsmasq(net)
    by_hand(net)

    async def main() -> None:
        owner = whole_port()
        async with Gateway(net, external()) as gateway:
            await until(lambda: inquiry(gateway) and inquiry(gateway)._tries == 2, 60)
            assert servers(gateway) == ()
            owner.close()
            await until(lambda: servers(gateway), 60)
            whole_port().close()

    with caplog.at_level(logging.INFO, "gateway.uplink"):
        inside(net.router, main)
    told = [record.getMessage() for record in caplog.records if "port 68" in record.getMessage()]
    assert told == ["wan: port 68 is another program's, waiting for it"]


@pytest.mark.peer("dnsmasq")
def test_beside_an_owner_that_shares_the_port(net: Net) -> None:
    """As systemd-networkd, dhcpcd and dhclient hold it: SO_REUSEADDR. The answer is ours; what comes later, theirs."""
    dnsmasq(net)
    by_hand(net)

    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as owner:
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
            owner.bind(("192.0.2.77", 68))
            async with Gateway(net, external()) as gateway:
                await until(lambda: servers(gateway), 60)
                renewal = "import socket; socket.socket(2, 2).sendto(b'renewal', ('192.0.2.77', 68))"
                net.start(net.isp, sys.executable, "-c", renewal)
                assert await until(lambda: received(owner)) == b"renewal"

    inside(net.router, main)


@pytest.mark.peer("dnsmasq")
def test_forbidden_and_allowed_by_reload(net: Net) -> None:
    dnsmasq(net)
    by_hand(net)

    async def main() -> None:
        async with Gateway(net, external(inform=False)) as gateway:
            await until(lambda: gateway.uplinks["wan"].snapshot.ready)
            assert inquiry(gateway) is None
            assert servers(gateway) == ()
            await gateway.uplinks.reload([external()])
            await until(lambda: servers(gateway), 60)
            await gateway.uplinks.reload([external(inform=False)])
            await until(lambda: servers(gateway) == ())

    inside(net.router, main)


def test_nobody_answers(net: Net) -> None:
    """All stays as it is without a DHCP server; between two questions the port is free."""
    by_hand(net)

    async def main() -> None:
        async with Gateway(net, external()) as gateway:
            await until(lambda: inquiry(gateway) and inquiry(gateway).state.value == "asking", 60)
            with pytest.raises(OSError, match="in use"):
                whole_port()
            await until(lambda: inquiry(gateway).state.value == "pausing", 60, 0.01)
            whole_port().close()
            assert gateway.uplinks.elected is not None
            assert servers(gateway) == ()
            assert gateway.uplinks.elected.problem == ""

    inside(net.router, main)
