"""The gateway with no other capabilities than its unit leaves it: all that it does otherwise it does with them."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from gateway.core.errors import GatewayError
from gateway.lab.process import User
from gateway.service.control import ask
from gateway.uplink.dnsmasq.daemon import argument_of, find
from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, ROOT, USERSPACE, Whole, keepers, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
UNIT = Path(__file__).resolve().parents[3] / "packaging/debian/gateway.service"
LAN = {"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"],
       "dhcp_server": {"range": ["192.168.7.100", "192.168.7.199"]}, "domain": "lan.example"}  # fmt: skip
SOMEBODY = User(4001, 4100)
ELSEWHERE = {"perfmon", "dac_read_search"}
"""Needed by the verifier of other kernels for the same programs; for the cgroup of a program that has ended."""


def capabilities() -> list[str]:
    lines = [line for line in UNIT.read_text().splitlines() if line.startswith("CapabilityBoundingSet=")]
    return [word.removeprefix("CAP_").lower() for line in lines for word in line.partition("=")[2].split()]


def within(*allowed: str) -> tuple[str, ...]:
    words = ",".join(["-all", *(f"+{one}" for one in allowed)])
    return ("setpriv", "--inh-caps", words, "--bounding-set", words, "--no-new-privs", sys.executable, "-m", "gateway")


@pytest.mark.parametrize("fail", ["open", "hold"])
def test_those_are_enough(whole: Whole, fail: str) -> None:
    whole.program = within(*capabilities())
    live(whole, fail)


@pytest.mark.soak
@pytest.mark.parametrize("one", [one for one in capabilities() if one not in ELSEWHERE])
def test_each_is_needed(whole: Whole, one: str) -> None:
    whole.program = within(*(other for other in capabilities() if other != one))
    with pytest.raises((AssertionError, OSError, GatewayError)):
        live(whole, "hold")


def live(whole: Whole, fail: str) -> None:
    """Start, carry flows, reload, stop, start again over what stands, and undo it all."""
    # By userspace, which has to find the owner of a socket of somebody else; and by the process programs.
    whole.rules = [{"user_id": [4001], "process_path_regex": ["/python3[^/]*$"], "outbound": "far"}]
    # An address that it makes of the gateway's advertisements would be another one than the test looks for.
    whole.client.run(["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=0"], check=True)
    whole.start(fail, lans=[LAN])
    assert ask(whole.folder, {"command": "status"})["refused"] == {}
    for six in (0, 1):
        assert whole.ask("tcp", whole.client, DIRECT[six]) == KERNEL[six]
        assert whole.ask("tcp", whole.client, PROXIED[six]) == USERSPACE[six]
    first = served(whole)
    asking = (
        f"import socket; s = socket.create_connection(('{DIRECT[0]}', 7), 5); s.send(b'?'); print(s.recv(99).decode())"
    )
    seen = [whole.gateway.run([sys.executable, "-c", asking], user=user).out.split()[:1] for user in (SOMEBODY, None)]
    assert seen == [[USERSPACE[0]], ["203.0.113.1"]]
    whole.reload(fail, lans=[LAN], heartbeat="4s")
    assert until(whole.steers)
    whole.end(signal.SIGTERM)
    assert len(keepers(whole)) == (fail == "hold")
    # The next one takes dnsmasq over, and ends the keeper: processes of another user, of another time.
    whole.start(fail, lans=[{**LAN, "domain": "other.example"}])
    assert served(whole) != first
    whole.end(signal.SIGTERM)
    asked = json.loads(whole.write(fail, lans=[LAN]).read_text())
    asked["gateway"]["uplinks"] = [{"interface": "wan0", "dhcp4": {}}]
    (whole.lab.folder / "gateway.json").write_text(json.dumps(asked))
    words = [*whole.program, "run", "-c", whole.lab.folder / "gateway.json", "--instance", whole.instance]
    whole.process = whole.gateway.popen(words, cwd=ROOT)
    assert until(lambda: discovers(whole)), "a DHCP client without a server asks"
    whole.end(signal.SIGTERM)
    done = whole.gateway.run([*whole.program, "down", "--instance", whole.instance], timeout=60)
    assert done.ok, done.err
    assert whole.tables() == set()
    assert keepers(whole) == []


def served(whole: Whole) -> list[int]:
    """The LAN has its dnsmasq, which stays. Its numbers."""
    assert until(lambda: {("udp", 53), ("udp", 67)} <= whole.gateway.listeners())
    argument = argument_of(whole.folder)
    running = whole.gateway.call(lambda: find(argument))
    assert len(running) == 1
    time.sleep(1)
    assert whole.gateway.call(lambda: find(argument)) == running
    assert ask(whole.folder, {"command": "status"})["problems"] == {}
    assert whole.names() == "198.51.100.1"
    return running


def discovers(whole: Whole) -> bool:
    """The server's host hears a DHCPDISCOVER."""
    with whole.server.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300) as sock:
        sock.settimeout(10)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            packet = sock.recv(2000)
            if packet[12:14] == b"\x08\x00" and packet[36:38] == b"\0\x43" and b"\x35\x01\x01" in packet:
                return True
    return False
