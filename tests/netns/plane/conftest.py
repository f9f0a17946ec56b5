"""client - router - server in three namespaces of this run's own; the router captures with rules written here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

RULES = """
table inet plane {
  chain prerouting {
    type filter hook prerouting priority mangle; policy accept;
    fib daddr type local accept
    meta l4proto tcp socket transparent 1 meta mark set 0x01000000 accept
    iifname "wan" accept
    tcp dport 8001 accept
    meta nfproto ipv4 meta l4proto { tcp, udp } tproxy ip to :7893 meta mark set 0x01000000 accept
    meta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to :7893 meta mark set 0x01000000 accept
  }
  chain output {
    type route hook output priority mangle; policy accept;
    meta mark & 0xf8000000 == 0xf8000000 accept
    ct direction reply accept
    oifname "wan" udp dport 8000 meta mark set 0x01000000
    oifname "wan" tcp dport 8000 meta mark set 0x01000000
  }
  chain dstnat {
    type nat hook prerouting priority dstnat; policy accept;
    iifname "lan" tcp dport 8001 redirect to :7894
  }
}
"""


class Net:
    def __init__(self) -> None:
        base = f"gwplane-{os.getpid()}-{time.monotonic_ns() % 1_000_000}"
        self.client, self.router, self.server = (f"{base}-{end}" for end in "crs")
        self.running: list[subprocess.Popen[str]] = []
        self.gateway: subprocess.Popen[str] | None = None

    def sh(self, space: str, *commands: str) -> None:
        for command in commands:
            subprocess.run(["ip", "netns", "exec", space, *command.split()], check=True)

    def up(self) -> None:
        for space in (self.client, self.router, self.server):
            subprocess.run(["ip", "netns", "add", space], check=True)
        self.sh(self.router, f"ip link add lan type veth peer name eth0 netns {self.client}",
                f"ip link add wan type veth peer name eth0 netns {self.server}")  # fmt: skip
        for space, device, *addresses in (
            (self.client, "eth0", "192.168.8.100/24", "2001:db8:8::100/64"),
            (self.router, "lan", "192.168.8.1/24", "2001:db8:8::1/64"),
            (self.router, "wan", "203.0.113.1/24", "2001:db8:1::1/64"),
            (self.server, "eth0", "203.0.113.9/24", "203.0.113.10/24", "2001:db8:1::9/64"),
        ):
            for address in addresses:
                nodad = " nodad" if ":" in address else ""
                self.sh(space, f"ip address add {address} dev {device}{nodad}")
            self.sh(space, "ip link set lo up", f"ip link set {device} up")
        for space, via4, via6 in ((self.client, "192.168.8.1", "2001:db8:8::1"),
                                  (self.server, "203.0.113.1", "2001:db8:1::1")):  # fmt: skip
            self.sh(space, f"ip route add default via {via4}", f"ip -6 route add default via {via6}")
        for family in ("-4", "-6"):
            self.sh(self.router, f"ip {family} rule add fwmark 0x01000000/0x01000000 lookup 2380",
                    f"ip {family} route add local default dev lo table 2380")  # fmt: skip
        self.sh(self.router, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        subprocess.run(["ip", "netns", "exec", self.router, "nft", "-f", "-"], input=RULES, text=True, check=True)

    def spawn(self, space: str, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["ip", "netns", "exec", space, sys.executable, *words],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        return process

    def ask(self, space: str, *words: str) -> list[str]:
        done = subprocess.run(
            ["ip", "netns", "exec", space, sys.executable, str(HERE / "far.py"), *words],
            stdout=subprocess.PIPE, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.splitlines()

    def down(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for space in (self.client, self.router, self.server):
            subprocess.run(["ip", "netns", "delete", space], check=False)


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    try:
        net.up()
        net.spawn(net.server, str(HERE / "far.py"), "serve")
        net.gateway = net.spawn(net.router, str(HERE / "near.py"))
        yield net
    finally:
        net.down()
