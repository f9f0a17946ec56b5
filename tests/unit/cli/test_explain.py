"""``gateway explain`` on a file: the rule, the place, the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main

HOME = Path(__file__).resolve().parents[3] / "examples/home.json"


PAGE = Path(__file__).resolve().parents[3] / "docs/devices.md"


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["explain", "-c", str(HOME), "--source", "192.168.8.9", "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("words", "rule", "outbound", "verdict", "where"),
    [
        (["198.51.100.7"], 0, "direct", "direct", "kernel"),
        (["2001:db8:f::7"], 0, "direct", "direct", "kernel"),
        (["198.51.100.200"], 1, "", "reject", "kernel"),
        (["192.0.2.7", "--network", "udp", "--port", "7"], 2, "proxy", "user", "userspace"),
        (["192.0.2.7"], -1, "direct", "sniff", "userspace"),
        (["192.0.2.7", "--shown", "www.far.example"], 4, "proxy", "sniff", "userspace"),
        # Servers that speak first are never sniffed, so no domain rule can change this one.
        (["192.0.2.7", "--port", "25"], -1, "direct", "direct", "kernel"),
    ],
)
def test_from_the_file(
    capsys: pytest.CaptureFixture[str], words: list[str], rule: int, outbound: str, verdict: str, where: str
) -> None:
    found = explained(capsys, *words)
    assert (found["rule"], found["outbound"], found["verdict"], found["where"]) == (rule, outbound, verdict, where)
    assert found["text"]


def test_what_goes_into_a_lan_is_not_steered(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["explain", "-c", str(HOME), "-c", str(HOME.with_name("gateway.json")), "--json"]
    for target in ("192.168.8.77", "2001:db8:a::77"):
        assert main([*words, "--network", "udp", "--port", "7", target]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["verdict"], found["where"]) == ("direct", "kernel")


def test_the_mode_of_the_file_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"action": "sniff"}, {"domain": "far.example", "outbound": "proxy"},
             {"ip_cidr": "203.0.113.0/24", "outbound": "direct"}]  # fmt: skip
    proxy = {"type": "socks", "tag": "proxy", "server": "192.0.2.9", "server_port": 1080}
    for mode, where, skipped in (("strict", "userspace", []), ("balanced", "kernel", [1]), ("off", "userspace", [])):
        file = tmp_path / "config.json"
        file.write_text(json.dumps({
            "outbounds": [proxy, {"type": "direct", "tag": "direct"}], "route": {"rules": rules},
            "gateway": {"kernel": {"mode": mode}, "lans": []},
        }))  # fmt: skip
        assert main(["explain", "-c", str(file), "--source", "192.168.8.9", "--json", "203.0.113.7"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["where"], [one["rule"] for one in found["skipped"]]) == (where, skipped), mode


def test_what_goes_into_a_lan_skips_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = [{"action": "sniff"}, {"domain": "far.example", "action": "reject"},
             {"ip_cidr": "192.168.0.0/16", "outbound": "direct"}]  # fmt: skip
    file = tmp_path / "config.json"
    file.write_text(json.dumps({
        "outbounds": [{"type": "direct", "tag": "direct"}], "route": {"rules": rules},
        "gateway": {"kernel": {"mode": "fast"}, "lans": [{"interface": "lan", "address": ["192.168.8.1/24"]}]},
    }))  # fmt: skip
    for address, skipped in (("192.168.9.7", 1), ("192.168.8.7", 0)):
        assert main(["explain", "-c", str(file), "--source", "192.168.8.9", "--json", address]) == 0
        assert len(json.loads(capsys.readouterr().out)["skipped"]) == skipped


def test_a_name_goes_into_no_lan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({
        "outbounds": [{"type": "direct", "tag": "direct"}],
        "route": {"rules": [{"domain_suffix": "example", "action": "reject"}]},
        "gateway": {"lans": [{"interface": "lan", "address": ["192.168.8.1/24", "2001:db8:8::1/64"]}]},
    }))  # fmt: skip
    for source in ([], ["--source", "192.168.8.9"]):
        assert main(["explain", "-c", str(file), *source, "--json", "www.example"]) == 0
        assert json.loads(capsys.readouterr().out)["rule"] == 0
    for address in ("192.168.8.7", "2001:db8:8::7"):
        assert main(["explain", "-c", str(file), "--json", address]) == 0
        assert json.loads(capsys.readouterr().out)["verdict"] == "direct"


@pytest.mark.parametrize("target", ["203.0.113.7:443", "[2001:db8::1]:443", "https://a.example/", "", "a b"])
def test_what_is_no_destination(capsys: pytest.CaptureFixture[str], target: str) -> None:
    assert main(["explain", "-c", str(HOME), target]) == 1
    assert (
        capsys.readouterr().err == f'gateway explain: "{target}" is no address and no name; a port goes into --port\n'
    )


def test_a_hardware_address_is_taken_as_rules_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    rules = [{"source_mac_address": "00-53-00-AB-00-01", "action": "reject"}]
    file.write_text(json.dumps({"outbounds": [{"type": "direct", "tag": "direct"}], "route": {"rules": rules}}))
    for mac in ("00:53:00:ab:00:01", "00-53-00-AB-00-01"):
        words = ["explain", "-c", str(file), "--source", "192.168.8.9", "--mac", mac, "--json", "203.0.113.7"]
        assert main(words) == 0
        assert json.loads(capsys.readouterr().out)["verdict"] == "reject"


def test_bad_questions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", str(HOME), "--source", "not an address", "192.0.2.1"]) == 1
    assert main(["explain", "-c", str(HOME), "--user", "no-such-user", "192.0.2.1"]) == 1
    assert "no user" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "rule", "where"),
    [
        (["--interface", "guest", "--mac", "00:53:00:12:34:56"], 0, "kernel"),
        (["--interface", "br-lan", "--mac", "00:53:00:12:34:56"], 1, "kernel"),
        (["--interface", "br-lan", "--mac", "00:53:00:12:34:57"], -1, "kernel"),
        (["--interface", "br-lan", "--hostname", "TV"], 2, "userspace"),
        ([], -1, "kernel"),
    ],
)
def test_devices_as_their_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], rule: int, where: str
) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    path = tmp_path / "devices.json"
    path.write_text(text)
    assert main(["explain", "-c", str(path), "--source", "192.168.9.9", "10.0.0.1", "--json", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rule"], found["where"]) == (rule, where)
