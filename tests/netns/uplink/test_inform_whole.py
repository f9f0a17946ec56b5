"""DHCPINFORM of a whole gateway behind its own closed WAN: the answer comes in, and the LAN resolves by it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.lab.topology import End, Host, Link, Route, Service, Topology

pytestmark = pytest.mark.root

ROOT = Path(__file__).resolve().parents[3]
OURS, ISP = "203.0.113.1", "203.0.113.2"
SERVER = (
    "dnsmasq", "-k", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--pid-file",
    "--interface=eth0", "--bind-interfaces", "-A/site.example/198.51.100.1", "--dhcp-authoritative",
    "--dhcp-range=203.0.113.100,203.0.113.150,255.255.255.0,10m", "--dhcp-leasefile={folder}/leases",
    f"--dhcp-option=option:dns-server,{ISP}",
)  # fmt: skip
TOPOLOGY = Topology(
    "inform",
    (
        Host("client", addresses={"eth0": ("192.168.7.2/24",)}, routes=(Route("default", "192.168.7.1"),)),
        # Somebody else's doing: the address and the route.
        Host("gateway", addresses={"lan0": (), "wan0": (f"{OURS}/24",)}, routes=(Route("default", ISP),)),
        Host("isp", addresses={"eth0": (f"{ISP}/24",)}),
    ),
    (Link(End("client", "eth0"), End("gateway", "lan0")), Link(End("gateway", "wan0"), End("isp", "eth0"))),
    (Service("isp", "dnsmasq", SERVER, ready=(("udp", 53), ("udp", 67))),),
)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab:
        yield lab


@pytest.mark.slow
def test_the_answer_comes_through_the_closed_wan(lab: Lab) -> None:
    gateway, instance = lab.host("gateway"), f"lab-{lab.id}"
    path = lab.folder / "gateway.json"
    path.write_text(json.dumps({
        "outbounds": [{"type": "direct", "tag": "direct"}],
        "gateway": {
            "firewall": True,
            "uplinks": [{"interface": "wan0", "external": True}],
            "lans": [{"interface": "lan0", "address": ["192.168.7.1/24"]}],
            "kernel": {"cgroup": str(gateway.group)},
        },
    }))  # fmt: skip

    def command(*words: str) -> Any:
        words = (sys.executable, "-m", "gateway", *words, "--instance", instance)
        return gateway.run(words, cwd=ROOT, timeout=60)

    def dns() -> list[str]:
        done = command("status", "--json")
        # At first it lists no uplink yet.
        return [server for uplink in done.json()["uplinks"] for server in uplink["dns"]] if done.ok else []

    process = gateway.popen(
        [sys.executable, "-m", "gateway", "run", "-c", str(path), "--instance", instance], cwd=ROOT
    )  # fmt: skip
    try:
        poll(dns, "no name servers", 30)
        assert dns() == [ISP]
        # What it asks of the kernel for speed; the base table stands in for the first.
        names = ["net.ipv4.conf.lan0.accept_local", "net.ipv4.ip_early_demux"]
        assert gateway.run(["sysctl", "-n", *names], check=True).out.split() == ["1", "0"]
        with lab.host("isp").socket() as sock:
            sock.settimeout(1)
            with pytest.raises(TimeoutError):  # closed: not even refused
                sock.connect((OURS, 22))
        asked = lab.host("client").run(["dig", "+short", "+time=2", "+tries=3", "@192.168.7.1", "site.example"])
        assert asked.out.strip() == "198.51.100.1"
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)
        done = command("down")
        assert done.ok, done.err
