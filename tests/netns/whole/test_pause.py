"""``pause`` and ``resume``: new flows direct, of all or of one device; what runs goes on as it is."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import time
from typing import Any

import pytest

from gateway.service.control import ask

from .conftest import DIRECT, KERNEL, PROXIED, USERSPACE, Whole, talk, until

pytestmark = [pytest.mark.root]
REJECTED = DIRECT[0]
ABSENT = "198.51.100.77"
"""A resolver that does not exist."""


@pytest.fixture
def running(whole: Whole) -> Whole:
    """To ``PROXIED`` through userspace, one site is rejected."""
    whole.rules = [{"ip_cidr": REJECTED, "action": "reject"}]
    whole.start("open")
    return whole


def way(whole: Whole, kind: str = "tcp", family: int = 0, host: str = "client") -> str:
    """How a new flow to ``PROXIED`` goes."""
    seen = whole.ask(kind, whole.lab.host(host), PROXIED[family])
    return {USERSPACE[family]: "proxied", KERNEL[family]: "direct"}.get(seen, seen)


def ways(whole: Whole) -> set[str]:
    return {way(whole, kind, family) for kind in ("tcp", "udp") for family in (0, 1)}


def said(whole: Whole, *words: str) -> str:
    done = whole.command(*words)
    assert done.ok, done.err
    return str(done.out)


def looks(whole: Whole) -> list[str]:
    """Rules of the owned table that ask who is paused, and those that let everything pass."""
    text = whole.gateway.run(["nft", "list", "table", "inet", "gateway"], check=True).out
    chains = {part.split()[0]: part for part in text.split("\tchain ")[1:]}
    rules = [line.strip() for name in ("refused", "capture", "local") for line in chains[name].splitlines()[1:]]
    return [rule for rule in rules if "paused" in rule or rule == "goto to_direct"]


def mac(whole: Whole) -> str:
    (row,) = json.loads(whole.client.run(["ip", "-j", "link", "show", "eth0"], check=True).out)
    return str(row["address"])


def test_all(running: Whole) -> None:
    whole = running
    assert ways(whole) == {"proxied"}
    assert looks(whole) == []
    with contextlib.ExitStack() as stack:
        flows = [
            (stack.enter_context(whole.open(kind, whole.client, PROXIED[family])), USERSPACE[family])
            for kind in ("tcp", "udp") for family in (0, 1)
        ]  # fmt: skip
        assert [talk(sock) for sock, _ in flows] == [seen for _, seen in flows]
        assert whole.refused("tcp", whole.client, REJECTED)
        said(whole, "pause")
        assert [talk(sock) for sock, _ in flows] == [seen for _, seen in flows], "what runs goes on"
        assert ways(whole) == {"direct"}
        assert whole.works("tcp", whole.client, REJECTED), "paused is direct, whatever the rules say"
        assert whole.ask("tcp", whole.gateway, PROXIED[0]) == KERNEL[0], "this host's own flows too"
        late = [stack.enter_context(whole.open("tcp", whole.client, PROXIED[family])) for family in (0, 1)]
        for sock in late:
            talk(sock)
        told = ask(whole.folder, {"command": "explain", "destination": PROXIED[0], "port": 7, "source": "192.168.7.2"})
        assert (told["where"], told["outbound"], told["verdict"]) == ("kernel", "direct", "direct")
        assert "everything is paused (gateway resume)" in told["text"][-1]
        assert "paused, so direct: everything, until gateway resume" in said(whole, "status")
        said(whole, "resume")
        assert ways(whole) == {"proxied"}
        assert whole.refused("tcp", whole.client, REJECTED)
        assert looks(whole) == []
        assert [talk(sock) for sock, _ in flows] == [seen for _, seen in flows]
        assert [talk(sock) for sock in late] == list(KERNEL), "what began in the pause goes on directly"
    assert whole.command("resume").code == 1


@pytest.mark.parametrize(
    "by", [pytest.param("IPv4", marks=pytest.mark.slow), pytest.param("IPv6", marks=pytest.mark.slow), "MAC"]
)
def test_one_device(running: Whole, by: str) -> None:
    """By one address, that alone; by its hardware address, all of it. Another device goes by the rules."""
    whole = running
    other = ("192.168.7.3", "2001:db8:1::3")
    whole.client.run(["sh", "-ec", f"ip addr add {other[0]}/24 dev eth0; ip addr add {other[1]}/64 dev eth0 nodad"])
    try:
        device = {"IPv4": "192.168.7.2", "IPv6": "2001:db8:1::2", "MAC": mac(whole)}[by]
        said(whole, "pause", "--device", device)
        paused = {family: by in (("IPv4", "IPv6")[family], "MAC") for family in (0, 1)}
        for family, sources in ((0, ("192.168.7.2", other[0])), (1, ("2001:db8:1::2", other[1]))):
            for source in sources:
                direct = paused[family] and (by == "MAC" or source == device)
                for kind in ("tcp", "udp"):
                    seen = from_source(whole, kind, source, PROXIED[family])
                    wanted = {KERNEL[0] if family == 0 else source} if direct else {USERSPACE[family]}
                    assert {seen} == wanted, (kind, source)
        assert len(looks(whole)) == 1 + 2  # in the chain refused, and twice in capture
        assert whole.ask("tcp", whole.gateway, PROXIED[0]) == USERSPACE[0], "this host is no device"
        assert whole.command("resume", "--device", "192.0.2.1").code == 1
        told = {"command": "explain", "destination": PROXIED[0], "port": 7, "source": "192.168.7.2"}
        assert ("paused" in ask(whole.folder, told)["text"][-1]) == (by != "IPv6")
        said(whole, "resume", "--device", device)
        assert ways(whole) == {"proxied"}
        assert looks(whole) == []
    finally:
        whole.client.run(["sh", "-c", f"ip addr del {other[0]}/24 dev eth0; ip addr del {other[1]}/64 dev eth0"])


def from_source(whole: Whole, kind: str, source: str, site: str) -> str:
    family = socket.AF_INET6 if ":" in site else socket.AF_INET
    with whole.client.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.bind((source, 0))
        sock.connect((site, 7))
        return talk(sock)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["", "192.168.7.2"])
def test_it_runs_out(running: Whole, device: str) -> None:
    whole = running
    said(whole, "pause", "--for", "3s", *(["--device", device] if device else []))
    begun = time.monotonic()
    assert way(whole) == "direct"
    (one,) = ask(whole.folder, {"command": "status"})["paused"]
    assert one["device"] == device
    assert 0 < one["left"] <= 3
    assert until(lambda: way(whole) == "proxied", 10)
    assert 2 < time.monotonic() - begun < 6
    assert until(lambda: looks(whole) == [], 3)
    assert ask(whole.folder, {"command": "status"})["paused"] == []


@pytest.mark.slow
def test_names_are_the_plain_router_s(running: Whole) -> None:
    """Whoever is paused is answered by dnsmasq, and by no resolver that does not exist."""
    whole = running
    assert whole.names(ABSENT) == DIRECT[0], "captured"
    said(whole, "pause", "--device", "192.168.7.2")
    assert whole.names() == DIRECT[0]
    assert whole.names(ABSENT) != DIRECT[0]
    said(whole, "resume")
    assert whole.names(ABSENT) == DIRECT[0]


@pytest.mark.slow
def test_a_reload_keeps_it_and_a_restart_does_not(running: Whole) -> None:
    whole = running
    said(whole, "pause", "--device", "192.168.7.2")
    said(whole, "pause", "--device", mac(whole), "--for", "1h")
    whole.rules = []
    whole.write("open")
    assert ask(whole.folder, {"command": "reload"})["ok"]
    assert way(whole) == "direct"
    assert len(ask(whole.folder, {"command": "status"})["paused"]) == 2
    whole.end(signal.SIGTERM)
    whole.start("open")
    assert way(whole) == "proxied"
    assert ask(whole.folder, {"command": "status"})["paused"] == []


@pytest.mark.slow
def test_closed_lets_out_what_is_paused(whole: Whole) -> None:
    """``closed`` is about a gateway that is dead: one that lives says what is direct."""
    whole.start("closed")
    assert way(whole) == "proxied"
    said(whole, "pause")
    assert ways(whole) == {"direct"}
    with whole.open("tcp", whole.client, PROXIED[0]) as sock:
        talk(sock)
        whole.end(signal.SIGKILL)
        assert until(lambda: whole.refused("tcp", whole.client, PROXIED[0]))
        assert talk(sock) == KERNEL[0]


def test_what_it_takes(running: Whole, figure: Any) -> None:
    """The first pause of a kind changes rules, each other one an element."""
    whole, spent = running, []
    for number in range(20):
        begun = time.perf_counter()
        assert ask(whole.folder, {"command": "pause", "device": f"192.0.2.{number + 1}"})["ok"]
        spent.append((time.perf_counter() - begun) * 1000)
    figure(f"pause: the first {spent[0]:.1f} ms, further ones {sorted(spent[1:])[10]:.1f} ms")
    said(whole, "resume")
    assert looks(whole) == []
