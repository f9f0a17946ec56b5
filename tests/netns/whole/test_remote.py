"""What a whole gateway fetches and makes up: rule sets that change under way, and fake addresses."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.lab.host import Host
from tests.netns.whole.conftest import DIRECT, KERNEL, LEASED_DNS, USERSPACE, Whole, talk, until

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("whole")]
RANGES = {"inet4_range": "198.18.0.0/15", "inet6_range": "fc00::/18"}


def change(whole: Whole, work: Callable[[dict[str, Any]], None]) -> None:
    """From now on ``work`` is done to each configuration."""
    plain = whole.write

    def write(fail: str, **more: Any) -> Path:
        path = plain(fail, **more)
        value = json.loads(path.read_text())
        work(value)
        path.write_text(json.dumps(value))
        return path

    whole.write = write  # type: ignore[method-assign]


@contextmanager
def served(whole: Whole, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "http.server", "--directory", folder, "--bind", LEASED_DNS, "8000"]
    process = whole.server.popen(command)
    whole.server.wait_listening((("tcp", 8000),), process)
    try:
        yield
    finally:
        process.signal(signal.SIGTERM)
        process.wait()


@pytest.mark.slow
def test_a_rule_set_changes_what_the_kernel_does(whole: Whole, tmp_path: Path) -> None:
    """Without a server, with one, with another set, with the first again; a flow of the kernel outlives all of it."""
    file = tmp_path / "some.json"
    clock = iter(range(1_700_000_000, 1_800_000_000, 10))

    def put(*prefixes: str) -> None:
        """Servers tell versions apart by whole seconds."""
        file.write_text(json.dumps({"version": 3, "rules": [{"ip_cidr": [*prefixes, "192.0.2.0/24"]}]}))
        now = next(clock)
        os.utime(file, (now, now))

    def remote(value: dict[str, Any]) -> None:
        url = f"http://{LEASED_DNS}:8000/some.json"
        entry = {"type": "remote", "tag": "some", "url": url, "download_detour": "direct", "update_interval": "1s"}
        value["route"]["rule_set"] = [entry]

    def sees(*wanted: str) -> bool:
        """Of new flows, TCP and UDP, IPv4 and IPv6. False where one ends as the rules change: userspace's do."""
        try:
            seen = {whole.ask(kind, whole.client, site) for kind in ("tcp", "udp") for site in DIRECT}
        except OSError:
            return False
        return seen == set(wanted)

    whole.rules = [{"rule_set": "some", "outbound": "far"}]
    change(whole, remote)
    whole.start("open")
    assert "no copy yet" in whole.command("status").out
    assert sees(*KERNEL)
    with whole.open("tcp", whole.client, DIRECT[0]) as old:
        assert talk(old) == KERNEL[0]
        put()
        with served(whole, tmp_path):
            assert until(lambda: "no copy yet" not in whole.command("status").out, 40)
            assert sees(*KERNEL)
            put(*DIRECT)
            assert until(lambda: sees(*USERSPACE), 40)
            assert talk(old) == KERNEL[0]
            told = whole.command("explain", DIRECT[0], "--source", "192.168.7.2").out
            assert "rule 0 decides: far" in told, told
            put("198.51.100.99/32")
            assert until(lambda: sees(*KERNEL), 40)
        put(*DIRECT)
        assert talk(old) == KERNEL[0]
    whole.end(signal.SIGKILL)
    whole.start("open")
    assert sees(*KERNEL)
    with served(whole, tmp_path):
        assert until(lambda: sees(*USERSPACE), 40)
    whole.end(signal.SIGKILL)
    whole.start("open")
    assert sees(*USERSPACE), "the copy is of the next start, whoever answers"


def asked(host: Host, name: str, kind: str) -> str:
    return str(host.run(["dig", "+short", "+time=3", "+tries=3", "@192.168.7.1", name, kind]).out).strip()


def test_flows_to_fake_addresses(whole: Whole) -> None:
    """Of the LAN and of the router, TCP and UDP, both families: by the name, whatever rules say of the address. After
    SIGKILL the LAN has the real ones."""

    def fake(value: dict[str, Any]) -> None:
        value["dns"]["servers"].append({"type": "fakeip", "tag": "fake", **RANGES})
        value["dns"] |= {"rules": [{"query_type": ["A", "AAAA"], "domain_suffix": "site.example", "server": "fake"}]}
        value["dns"]["final"] = "isp"
        value["route"]["default_domain_resolver"] = "isp"

    whole.rules = [
        {"ip_cidr": ["198.18.0.0/15", "fc00::/18"], "action": "reject"},
        {"domain": "far.site.example", "outbound": "far"},
    ]
    change(whole, fake)
    whole.start("open")
    found = {(name, kind): asked(whole.client, name, kind) for name in ("site.example", "far.site.example")
             for kind in ("A", "AAAA")}  # fmt: skip
    assert found["site.example", "A"] == "198.18.0.3"
    assert found["far.site.example", "AAAA"] == "fc00::4"
    for (name, _), address in found.items():
        wanted = USERSPACE[0] if name.startswith("far") else KERNEL[0]
        for host in (whole.client, whole.gateway):
            for kind in ("tcp", "udp"):
                assert until(lambda h=host, k=kind, a=address: whole.works(k, h, a)), (name, kind, address)  # type: ignore[misc]
                assert whole.ask(kind, host, address) == wanted, (name, kind, address)
    rows = {row["destination"] for row in whole.flows() if row["plane"] == "userspace"}
    assert any("site.example" in str(one) for one in rows), rows
    told = whole.command("explain", found["far.site.example", "A"], "--source", "192.168.7.2")
    assert "is a fake address: the kernel leads its flows to userspace" in told.out
    assert "rule 1 decides: far" in told.out
    assert whole.refused("tcp", whole.client, "198.18.9.9"), "it stands for nothing"
    whole.end(signal.SIGKILL)
    assert until(lambda: asked(whole.client, "site.example", "A") == DIRECT[0], 10)
    assert whole.ask("tcp", whole.client, DIRECT[0]) == KERNEL[0]
