"""The direct inbound: a port whose flows all go to one place, with curl and dig in front, dnsmasq behind."""

from __future__ import annotations

import subprocess

import pytest

from tests import peers
from tests.interop.harness import LOOPBACK, LOOPBACKS, Gateway, free_port, program
from tests.interop.web import bracket, curl, web


def ours(at, port):
    return Gateway({"type": "direct", "override_address": LOOPBACK, "override_port": port}, host=at)


@pytest.mark.peer("curl")
@pytest.mark.parametrize("at", LOOPBACKS)
def test_tcp_from_curl(at):
    with web() as (port, body), ours(at, port) as gateway:
        assert curl(f"http://{bracket(at)}:{gateway.port}/") == body
        assert [str(flow.destination) for flow in gateway.router.flows] == [f"{LOOPBACK}:{port}"]


@pytest.mark.peer("dig")
@pytest.mark.peer("dnsmasq")
@pytest.mark.parametrize("at", LOOPBACKS)
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_from_dig(at, over):
    port = free_port()
    command = [
        peers.path("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
        f"--port={port}", f"--listen-address={LOOPBACK}", "--bind-interfaces", "--user=root", "--pid-file=",
        "--address=/far.example/192.0.2.7",
    ]  # fmt: skip
    with program(*command, ready=port), ours(at, port) as gateway:
        words = ["dig", f"@{at}", "-p", str(gateway.port), "+short", "+tries=3", "far.example", "A"]
        found = subprocess.run(
            words + ["+tcp"] * (over == "tcp"), capture_output=True, text=True, timeout=60, check=True
        )
        assert found.stdout.split() == ["192.0.2.7"]
        assert {(flow.network, str(flow.destination)) for flow in gateway.router.flows} == {
            (over, f"{LOOPBACK}:{port}")
        }
