"""docs/first-router.md, docs/side-router.md and docs/from-sing-box.md do what they say, line by line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from gateway.config.text import parse
from gateway.lab.lab import Lab
from gateway.lab.topology import Bridge, End, Host, Link, Route, Service, Topology
from tests import peers
from tests.netns.far import far

from .conftest import FORWARDING, TAKE, UNFILTERED, dnsmasq
from .pages import ROOT, Reader, blocks

pytestmark = [pytest.mark.root, pytest.mark.peer("dnsmasq"), pytest.mark.peer("busybox"), pytest.mark.peer("sshd")]

NAMES = {"www.example.com": ("198.51.100.1", "2001:db8:2::1"), "www.example.org": ("198.51.100.2", "2001:db8:2::2")}
ISP = ("192.0.2.1", "2001:db8:3::1")
PROXY = "192.0.2.10"
NAT = 'table ip nat { chain out { type nat hook postrouting priority srcnat; oifname "wan" masquerade; }; }'


def isp(port: str, *more: str) -> tuple[Host, tuple[Service, ...]]:
    """The provider, its sites and its names; ``port`` leads to the customer, who may ask for an address."""
    addresses = {
        port: (f"{ISP[0]}/24", f"{ISP[1]}/64", f"{PROXY}/24"),
        "lo": tuple(f"{four}/32" for four, _ in NAMES.values()) + tuple(f"{six}/128" for _, six in NAMES.values()),
    }
    records = [f"--address=/{name}/{address}" for name, both in NAMES.items() for address in both]
    names = dnsmasq("isp", f"--interface={port}", "--dhcp-range=192.0.2.100,192.0.2.150,10m", "--no-ping",
                    "--dhcp-authoritative", "--dhcp-leasefile={folder}/leases", *records)  # fmt: skip
    command = (sys.executable, "-m", "gateway.lab.server", "--site", "isp", "--shared", "{shared}", "--http", "80")
    web = Service("isp", "site", command, ready=(("tcp", 80),))
    return Host("isp", addresses=addresses, sysctls=FORWARDING, routes=(Route("2001:db8:1::/64", "2001:db8:3::2"),)), (
        names,
        web,
    )


def two_ports() -> Topology:
    provider, served = isp("box")
    return Topology(
        "two-ports",
        (provider, Host("box"), Host("laptop")),
        (Link(End("box", "eth0"), End("isp", "box")), Link(End("box", "eth1"), End("laptop", "eth0"))),
        served,
    )


def one_port() -> Topology:
    """The provider's customer is a router that is not ours."""
    provider, served = isp("house")

    def inside(name: str, four: str, six: str) -> Host:
        routes = (Route("default", "192.168.1.1"), Route("default6", "2001:db8:1::1"))
        return Host(name, addresses={"eth0": (f"{four}/24", f"{six}/64")}, routes=routes, nameservers=(ISP[0],),
                    sysctls=UNFILTERED)  # fmt: skip

    house = Host(
        "house",
        bridges=(Bridge("lan", ("to-box", "to-laptop")),),
        addresses={"lan": ("192.168.1.1/24", "2001:db8:1::1/64"), "wan": ("192.0.2.2/24", "2001:db8:3::2/64")},
        routes=(Route("default", ISP[0]), Route("default6", ISP[1])),
        sysctls=FORWARDING | UNFILTERED,
    )
    hosts = inside("box", "192.168.1.2", "2001:db8:1::2"), inside("laptop", "192.168.1.10", "2001:db8:1::10")
    links = [Link(End(name, "eth0"), End("house", f"to-{name}")) for name in ("box", "laptop")]
    return Topology(
        "one-port", (provider, house, *hosts), (*links, Link(End("house", "wan"), End("isp", "house"))), served
    )


@contextmanager
def reading(topology: Topology, address: str = "") -> Iterator[Reader]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(topology) as lab, closing(Reader(lab, address)) as reader:
        if "house" in lab.hosts:
            assert lab.host("house").run(["nft", "-f", "-"], stdin=NAT.encode()).ok
        yield reader


def seen(reader: Reader, line: str) -> str:
    """Whom the site saw."""
    return str(json.loads(reader.said[line])["client"][0])


@pytest.mark.slow
def test_first_router() -> None:
    """From the box's console, and over SSH from the laptop as soon as that has a lease."""
    with reading(two_ports()) as reader:
        script = reader.folder / "take"
        script.write_text(TAKE + 'echo "nameserver $dns" > /etc/resolv.conf\n')
        script.chmod(0o755)
        plugged = False
        for block in reader.follow("first-router.md"):
            if "confirm" in block.text:
                assert "trial" in reader.status()
            if block.where == "laptop" and not plugged:
                words = f"{peers.path('busybox')} udhcpc -f -q -n -t 10 -T 1 -i eth0 -s {script}"
                reader.type("laptop", words)
                plugged = True
        assert seen(reader, "curl -s http://www.example.com/").startswith("192.0.2.1")
        assert reader.said["ssh -t 192.168.8.1 sudo gateway confirm"].startswith("confirmed")
        (leased,) = [line for line in reader.said["sudo gateway devices"].splitlines() if "192.168.8." in line]
        assert "192.168.8.1/24" in (reader.folder / "gateway.json").read_text()
        assert leased
        rows = reader.lab.host("box").run(["ip", "-4", "addr", "show", "scope", "global"]).out
        assert not rows.strip(), "as before"


TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"


def test_a_person_answers_at_a_terminal() -> None:
    """What ``init`` is without arguments: empty answers take what it proposes, another one is taken as it is."""
    with reading(two_ports()) as reader:
        box = reader.lab.host("box")
        for line in ("addr add 192.0.2.7/24 dev eth0", "link set eth0 up", "route add default via 192.0.2.1"):
            box.run(["ip", *line.split()], check=True)
        words = [sys.executable, "-c", TERMINAL, sys.executable, "-m", "gateway", "init"]
        answers = b"\n\n\n192.168.44.1/24\n"
        done = box.run(words, stdin=answers, cwd=reader.folder, environment={"PYTHONPATH": str(ROOT)})
        assert done.ok, done.out
        for question in ("topology (router", "uplink [eth0]", "LAN (several ports with commas) [eth1]"):
            assert question in done.out
        made = parse((reader.folder / "gateway.json").read_text(), "gateway.json")["gateway"]
        assert [one["interface"] for one in made["uplinks"]] == ["eth0"]
        assert [(one["interface"], one["address"]) for one in made["lans"]] == [("eth1", ["192.168.44.1/24"])]


@pytest.mark.slow
def test_side_router() -> None:
    """All that is typed on the box comes over one SSH connection from the laptop, which proves nothing."""
    with reading(one_port(), "192.168.1.2") as reader:
        ways = []
        for block in reader.follow("side-router.md"):
            ways.append(block.where)
            if "confirm" in block.text:
                with pytest.raises(AssertionError, match="open a second connection"):
                    reader.type("box", "sudo gateway confirm")
            if "2001:db8:1::1" in block.text:
                # Said of the first visit: the line stands twice.
                assert seen(reader, "curl -4 -s http://www.example.com/") == "192.0.2.2"
                assert seen(reader, "curl -6 -s http://www.example.com/") == "2001:db8:1::2", "the box's"
                tracked = reader.lab.host("box").run(["conntrack", "-L", "--orig-src", "192.168.1.10"]).out
                assert "dst=198.51.100.1" in tracked
        assert reader.said["ssh -t 192.168.1.2 sudo gateway confirm"].startswith("confirmed")
        assert ways.count("laptop") == 3


@pytest.mark.slow
def test_from_sing_box() -> None:
    with reading(one_port()) as reader, far(reader.lab, "isp", PROXY):
        for _ in reader.follow("from-sing-box.md"):
            pass
        here = {"192.0.2.2", "2001:db8:1::2"}
        assert seen(reader, "curl -s http://www.example.com/") in here
        assert seen(reader, "curl -s http://www.example.org/") not in here, "the proxy dialled"


@pytest.mark.parametrize("page", ["first-router.md", "side-router.md", "from-sing-box.md"])
def test_a_page_has_lines_to_follow(page: str) -> None:
    lines = [line for block in blocks(page) if block.kind == "sh" for line in block.text.splitlines()]
    for words in ("gateway init", "gateway check", "sudo gateway run", "sudo gateway down"):
        assert any(line.startswith(words) for line in lines), words
