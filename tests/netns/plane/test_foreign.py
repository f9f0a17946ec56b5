"""Captured flows between programs that are not ours: curl and dig in the LAN, nginx and dnsmasq far away."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.core.address import Address
from tests import peers

pytestmark = pytest.mark.root

HOSTS = {
    "v4": ("203.0.113.9", "192.168.8.100", "203.0.113.1"),
    "v6": ("2001:db8:1::9", "2001:db8:8::100", "2001:db8:1::1"),
}
NGINX = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error error;
user root;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 8080;
        listen [::]:8080;
        listen 8001;
        listen [::]:8001;
        root {folder};
        location = /who {{ return 200 "$remote_addr"; }}
    }}
}}
"""
DNS = 5353


def run(space: str, *words: str) -> str:
    command = ["ip", "netns", "exec", space, *words]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


@pytest.fixture
def servers(net: Any, tmp_path: Path) -> Iterator[bytes]:
    """nginx on 8080 and 8001, with a file of 3 MB, and dnsmasq on 5353, in the server's namespace."""
    body = bytes(range(256)) * (12 << 10)
    (tmp_path / "big").write_bytes(body)
    (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path))
    tmp_path.chmod(0o755)
    commands = [
        [peers.path("nginx"), "-p", tmp_path, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error"],
        [
            peers.path("dnsmasq"), "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            f"--port={DNS}", "--user=root", "--pid-file=", "--address=/far.example/192.0.2.7",
        ],
    ]  # fmt: skip
    started = [subprocess.Popen(["ip", "netns", "exec", net.server, *map(str, command)]) for command in commands]
    try:
        deadline = time.monotonic() + 60
        while not {":8080", ":8001", f":{DNS}"} <= {
            ":" + line.split()[3].rpartition(":")[2] for line in run(net.server, "ss", "-Htln").splitlines()
        }:
            assert time.monotonic() < deadline, "the servers do not listen"
            time.sleep(0.05)
        yield body
    finally:
        for process in started:
            process.terminate()
            process.wait(20)


def told(net: Any) -> list[str]:
    line: list[str] = json.loads(net.gateway.stdout.readline())
    return line


def url(host: str, port: int, path: str) -> str:
    return f"http://[{host}]:{port}/{path}" if ":" in host else f"http://{host}:{port}/{path}"


@pytest.mark.peer("curl")
@pytest.mark.peer("nginx")
@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize(("inbound", "port"), [("tproxy", 8080), ("redirect", 8001)])
def test_curl_to_nginx(net: Any, servers: bytes, tmp_path: Path, family: str, inbound: str, port: int) -> None:
    """nginx sees the router; the inbound has the address that curl wrote to; 3 MB arrive whole."""
    far, client, router = HOSTS[family]
    assert run(net.client, "curl", "-sS", "-m", "50", url(far, port, "who")) == router
    network, name, source, destination = told(net)
    assert (network, name, destination) == ("tcp", inbound, str(Address.of(far, port)))
    assert client in source
    run(net.client, "curl", "-sS", "-m", "50", "-o", str(tmp_path / "got"), url(far, port, "big"))
    assert (tmp_path / "got").read_bytes() == servers
    assert told(net)[1] == inbound


@pytest.mark.peer("dig")
@pytest.mark.peer("dnsmasq")
@pytest.mark.parametrize("family", ["v4", "v6"])
@pytest.mark.parametrize("over", ["udp", "tcp"])
def test_dig_to_dnsmasq(net: Any, servers: bytes, family: str, over: str) -> None:
    """dig takes an answer only from the address that it asked."""
    far, client, _ = HOSTS[family]
    words = ["dig", f"@{far}", "-p", str(DNS), "+short", "+tries=3", *(["+tcp"] if over == "tcp" else [])]
    assert run(net.client, *words, "far.example", "A").split() == ["192.0.2.7"]
    network, inbound, source, destination = told(net)
    assert (network, inbound, destination) == (over, "tproxy", str(Address.of(far, DNS)))
    assert client in source
