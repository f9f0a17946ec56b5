"""Captured flows: the destination that the client meant, an answer from the address it wrote to."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from gateway.core.address import Address

pytestmark = pytest.mark.root

HOSTS = {
    "v4": ("203.0.113.9", "192.168.8.100", "203.0.113.1"),
    "v6": ("2001:db8:1::9", "2001:db8:8::100", "2001:db8:1::1"),
}


def told(net: Any) -> list[str]:
    line: list[str] = json.loads(net.gateway.stdout.readline())
    return line


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("place", ["client", "router"])
def test_tcp(net: Any, family: str, place: str) -> None:
    far, client, router = HOSTS[family]
    # 3 MB: the direction becomes hot, and splice carries it.
    (line,) = net.ask(getattr(net, place), "tcp", far, "8000", str(3 << 20))
    assert line == f"{router} {3 << 20} {far}"
    network, inbound, source, destination = told(net)
    assert (network, inbound, destination) == ("tcp", "tproxy", str(Address.of(far, 8000)))
    assert (client if place == "client" else router) in source


@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("place", ["client", "router"])
def test_udp(net: Any, family: str, place: str) -> None:
    far, client, router = HOSTS[family]
    hosts = "203.0.113.9,203.0.113.10" if family == "v4" else far
    lines = net.ask(getattr(net, place), "udp", hosts, "8000", "3")
    ports = set()
    for line in lines:
        asked, came, port, seen, seen_port, size, data = line.split()
        assert (asked, port, seen, size) == (came, "8000", router, "1")
        assert data in "012"
        ports.add(seen_port)
    assert len(ports) == 1, "one mapping for all peers"
    network, inbound, source, destination = told(net)
    assert (network, inbound, destination) == ("udp", "tproxy", str(Address.of(far, 8000)))
    assert (client if place == "client" else router) in source


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_redirect(net: Any, family: str) -> None:
    """Nothing listens on that port of the server: what counts is where the gateway thinks it goes."""
    far, client, _ = HOSTS[family]
    with pytest.raises(Exception, match="returned non-zero"):
        net.ask(net.client, "tcp", far, "8001", "1")
    network, inbound, source, destination = told(net)
    assert (network, inbound, destination) == ("tcp", "redirect", str(Address.of(far, 8001)))
    assert re.search(re.escape(client), source)


@pytest.mark.parametrize("port", ["7893", "7894"])
def test_the_listener_itself_is_no_destination(net: Any, port: str) -> None:
    (line,) = net.ask(net.client, "tcp", "192.168.8.1", port, "0")
    assert line == " 192.168.8.1", "closed at once, and no loop"
