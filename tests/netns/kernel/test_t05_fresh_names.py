"""T5: fresh names, and a client that connects in the same millisecond as it is told."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import dns.message
import pytest

from .naming import ASKED, SITES, Naming, naming

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]

NAMES = 1000


@pytest.fixture(scope="module")
def house() -> Iterator[Naming]:
    if os.geteuid():
        pytest.skip("needs root")
    with naming() as house:
        yield house


def race(house: Naming, names: int) -> tuple[list[str], set[tuple[str, int]]]:
    """Two fresh names an address, the first direct, the second proxied; what went wrong, and where the direct ones
    connected to from which port."""
    wrong: list[str] = []
    direct: set[tuple[str, int]] = set()
    asking = house.client.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.settimeout(10)
    asking.connect(ASKED)
    with asking:
        for number in range(names):
            family = 4 if number % 4 < 2 else 6
            site = f"{SITES[family]}{1 + number // 4:{'d' if family == 4 else 'x'}}"
            name = f"fresh{number}.{'far' if number % 2 else 'near'}.example"
            kind = "A" if family == 4 else "AAAA"
            house.far.zone[name, kind] = [site]
            query = dns.message.make_query(name, kind).to_wire()
            sock = house.client.socket(socket.AF_INET6 if family == 6 else socket.AF_INET)
            with sock:
                sock.settimeout(20)
                asking.send(query)
                asking.recv(4096)
                sock.connect((site, 80))
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                seen = sock.recv(100).decode()
                if seen != ("far" if number % 2 else "direct"):
                    wrong.append(f"{name} at {site}: {seen}")
                if not number % 2:
                    direct.add((site, sock.getsockname()[1]))
    return wrong, direct


def test_t05_a_thousand_fresh_names_none_misrouted(house: Naming) -> None:
    wrong, direct = race(house, NAMES)
    assert not wrong
    assert len(direct) == NAMES // 2
    assert direct <= house.kernel_flows(), "a direct name was in the kernel when the client was told"
    assert house.table("addresses") == NAMES // 2
