"""What the clients of ``reject`` rules see: the real sing-box and us, side by side."""

from __future__ import annotations

import socket

import pytest

from tests import peers
from tests.interop.harness import DEADLINE, LOOPBACK, encode, exactly, free_port, program
from tests.interop.test_run import DIRECT, gateway

ANSWERED = 50
RULES = [
    {"port": 1, "action": "reject"},
    {"port": 2, "action": "reject", "no_drop": True},
    {"port": 3, "action": "reject"},
    {"port": 4, "action": "reject", "method": "drop"},
]


def sing_box(port):
    config = {
        "inbounds": [{"type": "mixed", "tag": "in", "listen": LOOPBACK, "listen_port": port}],
        "outbounds": [DIRECT],
        "route": {"rules": RULES, "final": "direct"},
    }
    return program(peers.path("sing-box"), "run", "-c", "CONFIG", config=config, ready=port)


def ours(port):
    return gateway(port, [DIRECT], RULES, "direct")


def reply(port, target, patience):
    """The code of the SOCKS reply, None where nothing is said for ``patience`` seconds."""
    with socket.create_connection((LOOPBACK, port), DEADLINE) as sock:
        sock.settimeout(DEADLINE)
        sock.sendall(b"\x05\x01\x00")
        assert exactly(sock, 2) == b"\x05\x00"
        sock.sendall(b"\x05\x01\x00" + encode(LOOPBACK, target))
        sock.settimeout(patience)
        try:
            return exactly(sock, 4)[1]
        except TimeoutError:
            return None


@pytest.mark.slow
@pytest.mark.peer("sing-box")
@pytest.mark.parametrize(
    ("who", "refused", "dropped"), [pytest.param(sing_box, 5, 1, id="sing-box"), pytest.param(ours, 1, None, id="ours")]
)
def test_refused_fifty_times_then_dropped(who, refused, dropped):
    """At its SOCKS inbound sing-box tells a drop by another code; we let the client wait, there as everywhere."""
    port = free_port()
    with who(port):
        assert [reply(port, 1, DEADLINE) for _ in range(ANSWERED)] == [refused] * ANSWERED
        assert [reply(port, 1, 1) for _ in range(2)] == [dropped] * 2
        # Each rule counts for itself, and no_drop not at all.
        assert [reply(port, 2, DEADLINE) for _ in range(ANSWERED + 3)] == [refused] * (ANSWERED + 3)
        assert reply(port, 3, DEADLINE) == refused
        assert reply(port, 4, 1) == dropped
