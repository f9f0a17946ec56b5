"""T13: through a proxy a client's UDP port is one port of the proxy, to whomever; anybody may answer there, and what
comes back bears the address that it was sent from, even where the router has a service of its own on that port."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from gateway.lab.host import Host
from tests import peers

from .conftest import PROXIED, ROOT, SECOND, THIRD, Whole

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.peer("sing-box")]
SOCKS = 1080
OWNED = 5300
"""A port that the router itself serves."""
PEER = {"log": {"level": "warn"}, "inbounds": [{"type": "socks", "listen": "203.0.113.2", "listen_port": SOCKS}],
        "outbounds": [{"type": "direct"}]}  # fmt: skip


@pytest.fixture
def proxied(whole: Whole) -> Iterator[Whole]:
    """The proxy is sing-box, on the server."""
    try:
        program = peers.path("sing-box")
    except peers.PeerMissing as error:
        pytest.skip(str(error))
    path = whole.lab.folder / "socks.json"
    path.write_text(json.dumps(PEER))
    peer = whole.server.popen([program, "run", "-c", path], cwd=ROOT)
    try:
        whole.server.wait_listening([("tcp", SOCKS)], peer)
        whole.far = {"type": "socks", "server": "203.0.113.2", "server_port": SOCKS}
        whole.start("open")
        yield whole
    finally:
        peer.kill()


def bound(host: Host, address: str, port: int = 0) -> socket.socket:
    sock = host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind((address, port))
    return sock


@pytest.mark.parametrize("family", [4, 6])
def test_t13_one_port_for_all_and_everybody_may_answer(proxied: Whole, family: int) -> None:
    whole, index = proxied, family == 6
    places = [bound(whole.server, sites[index]) for sites in (PROXIED, SECOND, THIRD)]
    client = bound(whole.client, ("192.168.7.2", "2001:db8:1::2")[index])
    # Unconnected and dual: who answers is for the test to see.
    try:
        seen = []
        for place in places[:2]:
            client.sendto(b"first", place.getsockname()[:2])
            data, source = place.recvfrom(100)
            assert data == b"first"
            seen.append(source[:2])
        # The proxy is on the servers' own host, so that its address is theirs.
        assert seen[0][1] == seen[1][1], "the same port of the proxy for two servers"
        for place in (*places, places[0]):
            # To the port that was seen, from anywhere.
            name = f"from {place.getsockname()[0]}".encode()
            place.sendto(name, seen[0])
            data, source = client.recvfrom(100)
            assert (data, source[:2]) == (name, place.getsockname()[:2])
    finally:
        for sock in (client, *places):
            sock.close()


@pytest.mark.parametrize("family", [4, 6])
def test_t13_an_answer_from_a_port_that_the_router_serves(proxied: Whole, family: int) -> None:
    whole, index = proxied, family == 6
    any_address = ("0.0.0.0", "::")[index]
    with (
        bound(whole.gateway, any_address, OWNED) as service,
        bound(whole.server, PROXIED[index], OWNED) as place,
        bound(whole.client, any_address) as client,
    ):
        client.sendto(b"ping", (PROXIED[index], OWNED))
        data, source = place.recvfrom(100)
        assert data == b"ping"
        for number in range(3):
            place.sendto(b"pong %d" % number, source)
            data, sender = client.recvfrom(100)
            assert (data, sender[:2]) == (b"pong %d" % number, (PROXIED[index], OWNED))
        # And the router's own service is reached as ever.
        client.sendto(b"yours", (("192.168.7.1", "2001:db8:1::1")[index], OWNED))
        data, source = service.recvfrom(100)
        assert data == b"yours"
        service.sendto(b"mine", source)
        assert client.recvfrom(100)[0] == b"mine"
