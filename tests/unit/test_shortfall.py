"""``check --host``: what a host lacks, on ports and interfaces that are ours to take."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway import shortfall as module
from gateway.cli import main
from gateway.kernel.probe import Finding

ABSENT = "gwabsent0"


@pytest.fixture
def told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def check(value: dict[str, Any], *words: str) -> tuple[int, list[str]]:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(value))
        code = main(["check", "-c", str(path), *words])
        return code, capsys.readouterr().out.splitlines()

    return check


@pytest.mark.parametrize(("kind", "network"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_taken_port(told: Any, host: str, kind: socket.SocketKind, network: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as sock:
        sock.bind((host, 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        port = sock.getsockname()[1]
        inbound = {"type": "direct", "tag": "in", "listen": host, "listen_port": port, "network": network}
        assert told({"inbounds": [inbound]}) == (0, []), "the form is right"
        code, lines = told({"inbounds": [inbound]}, "--host")
        assert (code, len(lines)) == (1, 1)
        assert f"direct in: {network} port {port} of {host} is taken" in lines[0]
    assert told({"inbounds": [inbound]}, "--host") == (0, [])


def test_an_address_that_the_host_has_not(told: Any) -> None:
    code, lines = told(
        {"inbounds": [{"type": "socks", "tag": "s", "listen": "192.0.2.1", "listen_port": 1080}]}, "--host"
    )
    assert code == 1
    assert "cannot be had" in lines[0]


def test_absent_interfaces_and_what_the_kernel_lacks(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = (Finding("nft-tproxy", False, "refused", "modprobe nft_tproxy"), Finding("fine", True),
             Finding("bpf-process", False, "no BTF", needed=False))  # fmt: skip
    monkeypatch.setattr(module, "probe", lambda: lacks)
    gateway = {
        "uplinks": [{"interface": ABSENT, "dhcp4": {}}],
        "lans": [{"interface": "lo", "address": ["192.168.8.1/24"]}],
        "kernel": {"cgroup": "/nonexistent"},
    }
    code, lines = told({"gateway": gateway}, "--host")
    assert code == 1
    assert [line.split()[:2] for line in lines] == [
        ["missing", "nft-tproxy:"],
        ["without", "bpf-process:"],
        ["missing", "uplink"],
        ["without", "cgroup:"],
    ]
    assert ABSENT in lines[2]


def test_what_is_only_worse_is_no_failure(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda: (Finding("btf", False, "lost", needed=False),))
    gateway = {"lans": [{"interface": "lo", "address": ["192.168.8.1/24"]}]}
    code, lines = told({"gateway": gateway}, "--host")
    assert (code, lines) == (0, ["without  btf: lost"])


def test_what_a_tun_needs(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inbound = {"type": "tun", "tag": "in", "address": "172.19.0.1/30"}
    missing = Finding("tun", False, "/dev/net/tun: No such file or directory", "CONFIG_TUN (modprobe tun)")
    asked = []
    monkeypatch.setattr(module, "tunnel", lambda alone: asked.append(alone) or (missing, Finding("nft", True)))
    monkeypatch.setattr(module, "probe", lambda: ())
    code, lines = told({"inbounds": [inbound]}, "--host")
    assert code == 1
    assert lines == ["missing  tun: /dev/net/tun: No such file or directory -> CONFIG_TUN (modprobe tun)"]
    assert told({"inbounds": []}, "--host") == (0, [])
    gateway = {"lans": [{"interface": "lo", "address": ["192.168.8.1/24"]}]}
    code, lines = told({"inbounds": [inbound], "gateway": gateway}, "--host")
    assert (code, len(lines)) == (1, 1), "beside a gateway too"
    assert asked == [True, False]


def test_what_a_tun_names(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tunnel", lambda alone: ())
    monkeypatch.setattr(module, "parameter", lambda name: "1")
    inbound = {
        "type": "tun", "tag": "in", "address": ["172.19.0.1/30", "fd07::1/126"], "interface_name": "lo",
        "include_interface": ["lo", ABSENT],
    }  # fmt: skip
    code, lines = told({"inbounds": [inbound]}, "--host")
    assert code == 1
    assert lines == [
        "missing  tun in: lo is there and is no tun: choose another interface_name",
        f"without  tun in: include_interface: there is no interface {ABSENT}; it counts once it is there",
        "missing  tun in: it has an IPv6 address, and IPv6 is switched off for new interfaces"
        " -> sysctl -w net.ipv6.conf.default.disable_ipv6=0",
    ]
    inbound |= {"address": "172.19.0.1/30", "interface_name": ABSENT}
    assert told({"inbounds": [inbound]}, "--host") == (0, [])


def test_certificates_that_are_not_there(told: Any, tmp_path: Path) -> None:
    tls = {"enabled": True, "server_name": "a.test", "certificate_path": "ca.pem"}
    server = {"type": "tls", "tag": "dot", "server": "192.0.2.1", "tls": tls}
    proxy = {"type": "trojan", "tag": "out", "server": "192.0.2.1", "server_port": 443, "password": "x", "tls": tls}
    value = {"outbounds": [proxy], "dns": {"servers": [server]}}
    assert told(value, "-D", str(tmp_path)) == (0, []), "the form is right"
    code, lines = told(value, "-D", str(tmp_path), "--host")
    assert code == 1
    assert len([line for line in lines if f"{tmp_path}/ca.pem: No such file" in line]) == 2
    (tmp_path / "ca.pem").write_text("nothing")
    assert "no certificate in it" in told(value, "-D", str(tmp_path), "--host")[1][0]


def test_of_a_bridge_that_is_made_the_ports_are_asked_for(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda: ())
    lan = {"interface": "br-lan", "ports": ["lo", ABSENT], "address": ["192.168.8.1/24"]}
    code, lines = told({"gateway": {"lans": [lan]}}, "--host")
    assert code == 1
    assert lines == [f"missing  lan {ABSENT}: there is no such interface; run waits for it"]


def test_an_uplink_that_another_program_has(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "probe", lambda: ())
    other = module.owner.Owner("NetworkManager", 612, "nmcli device set lo managed no")
    monkeypatch.setattr(module.owner, "every", lambda names: dict.fromkeys(names, other))
    code, lines = told({"gateway": {"uplinks": [{"interface": "lo", "dhcp4": {}}]}}, "--host")
    assert code == 1
    assert '"external": true' in lines[0]
    assert lines[0].endswith(" -> nmcli device set lo managed no")
    assert told({"gateway": {"uplinks": [{"interface": "lo", "external": True}]}}, "--host") == (0, [])
