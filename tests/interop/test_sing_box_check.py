"""sing-box's own ``check`` beside ours: what one takes or refuses, the other does too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config.text import parse
from tests import peers

pytestmark = pytest.mark.peer("sing-box")

ROOT = Path(__file__).resolve().parents[2]
PURE = [
    file for file in sorted((ROOT / "examples").rglob("*.json")) if "gateway" not in parse(file.read_text(), file.name)
]
DIRECT = {"type": "direct", "tag": "direct"}
MIXED = {"type": "mixed", "tag": "in", "listen": "127.0.0.1", "listen_port": 2080}
PROXY = {"type": "shadowsocks", "tag": "proxy", "server": "192.0.2.1", "server_port": 1}
FAKE = {"type": "fakeip", "tag": "fake", "inet4_range": "198.18.0.0/15"}
WRONG = {
    "unknown-key": {"logs": {}},
    "unknown-field": {"log": {"levl": "info"}},
    "wrong-kind": {"log": {"disabled": "yes"}},
    "unknown-inbound": {"inbounds": [{"type": "sox", "tag": "in"}]},
    "unknown-outbound": {"outbounds": [{"type": "dierct"}]},
    "inbound-field": {"inbounds": [MIXED | {"listen_prt": 1}]},
    "port": {"inbounds": [MIXED | {"listen_port": 70000}]},
    "tag-twice": {"outbounds": [DIRECT, DIRECT]},
    "method": {"outbounds": [PROXY | {"method": "aes-512-gcm", "password": "x"}]},
    "key-length": {"outbounds": [PROXY | {"method": "2022-blake3-aes-128-gcm", "password": "c2hvcnQ="}]},
    "rule-field": {"outbounds": [DIRECT], "route": {"rules": [{"ports": 1, "outbound": "direct"}]}},
    "rule-action": {"outbounds": [DIRECT], "route": {"rules": [{"port": 1, "action": "rejct"}]}},
    "prefix": {"outbounds": [DIRECT], "route": {"rules": [{"ip_cidr": "192.0.2.0/33", "outbound": "direct"}]}},
    "expression": {"outbounds": [DIRECT], "route": {"rules": [{"domain_regex": "(", "outbound": "direct"}]}},
    "detour": {"outbounds": [DIRECT | {"detour": "none"}]},
    "dns-type": {"dns": {"servers": [{"type": "upd", "server": "192.0.2.1"}]}},
    "dns-field": {"dns": {"servers": [{"type": "udp", "server": "192.0.2.1", "port": 53}]}},
    "dns-strategy": {"dns": {"strategy": "ipv4"}},
    "dns-rule": {"dns": {"rules": [{"query_type": "NONSENSE", "action": "reject"}]}},
    "dns-action": {"dns": {"rules": [{"domain": "a.example", "action": "rejct"}]}},
    "fakeip-final": {"dns": {"servers": [FAKE]}},
    "fakeip-twice": {"dns": {"servers": [{"type": "local"}, FAKE, FAKE | {"tag": "other"}]}},
    "group-empty": {"outbounds": [DIRECT, {"type": "urltest", "tag": "auto", "outbounds": []}]},
    "rule-set-form": {"route": {"rule_set": [{"type": "remote", "tag": "set", "url": "https://set.example/list"}]}},
    "rule-set-field": {"route": {"rule_set": [{"type": "inline", "tag": "set", "url": "https://set.example/a.srs"}]}},
    "cache-field": {"experimental": {"cache_file": {"enable": True}}},
    "duration": {"inbounds": [MIXED | {"udp_timeout": "5 minutes"}]},
    "syntax": '{"log": {"level": "info"}',
    "empty-list-entry": '{"outbounds": [,]}',
}
LATER = {
    "rule-set": {"outbounds": [DIRECT], "route": {"rules": [{"rule_set": "none", "outbound": "direct"}]}},
    "dns-final": {"dns": {"servers": [{"type": "local", "tag": "a"}], "final": "b"}},
    "final": {"outbounds": [DIRECT], "route": {"final": "none"}},
    "group-interval": {
        "outbounds": [DIRECT, {"type": "urltest", "tag": "auto", "outbounds": ["direct"], "interval": "1h"}]
    },
    "selector-member": {"outbounds": [DIRECT, {"type": "selector", "tag": "s", "outbounds": ["none"]}]},
}
"""What sing-box's ``check`` leaves to its start."""


def check(file: Path) -> tuple[tuple[bool, str], tuple[bool, str]]:
    """(taken, what was said) by sing-box and by us."""
    theirs = subprocess.run(
        [peers.path("sing-box"), "check", "-c", file], capture_output=True, text=True, timeout=60, check=False
    )
    ours = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "-c", file],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ours.returncode in (0, 1), ours.stderr
    assert "Traceback" not in ours.stderr
    return (theirs.returncode == 0, theirs.stderr), (ours.returncode == 0, ours.stderr)


RIGHT = {
    "nothing": "{}",
    "comments": '{"log": {"level": "info",}, // one\n # two\n "outbounds": [/* three */ {"type": "direct"},],}',
    "dns": json.dumps(
        {
            "dns": {
                "servers": [{"type": "local", "tag": "host"}, {"type": "udp", "tag": "near", "server": "192.0.2.1"}],
                "rules": [
                    {"query_type": ["HTTPS", 64], "action": "reject"},
                    {"domain_suffix": ".example", "server": "near", "rewrite_ttl": 60},
                ],
                "final": "host",
                "strategy": "prefer_ipv4",
            },
            "route": {"rules": [{"protocol": "dns", "action": "hijack-dns"}], "default_domain_resolver": "host"},
        }
    ),
    "rules": json.dumps(
        {
            "outbounds": [DIRECT, {"type": "selector", "tag": "pick", "outbounds": ["direct"]}],
            "route": {
                "rule_set": [
                    {"type": "inline", "tag": "lan", "rules": [{"ip_cidr": ["192.0.2.0/24", "2001:db8::/32"]}]}
                ],
                "rules": [
                    {"type": "logical", "mode": "or", "rules": [{"port": 1}, {"rule_set": "lan"}], "outbound": "pick"},
                    {
                        "port_range": ["1:9", ":3"],
                        "network": "udp",
                        "invert": True,
                        "action": "reject",
                        "method": "drop",
                    },
                    {"process_name": "curl", "user": "nobody", "user_id": 0, "outbound": "direct"},
                    {"action": "sniff", "sniffer": ["tls", "quic"], "timeout": "1s"},
                    {"action": "resolve", "strategy": "ipv4_only"},
                    {"domain_regex": "^a+$", "domain_keyword": "x", "action": "route-options", "udp_timeout": "1m"},
                ],
                "final": "direct",
            },
        }
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_both_take(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(RIGHT[name])
    theirs, ours = check(file)
    assert theirs[0], theirs[1]
    assert ours[0], ours[1]


@pytest.mark.parametrize("file", PURE, ids=lambda file: file.name)
def test_both_take_our_examples(file: Path) -> None:
    theirs, ours = check(file)
    assert theirs[0], theirs[1]
    assert ours[0], ours[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_both_refuse(name: str, tmp_path: Path) -> None:
    value = WRONG[name]
    file = tmp_path / "config.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    theirs, ours = check(file)
    assert not theirs[0], f"sing-box takes it; we say: {ours[1]}"
    assert not ours[0], f"we take it; sing-box says: {theirs[1]}"
    assert str(file) in ours[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", LATER)
def test_refused_by_our_check_and_by_the_others_start(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LATER[name]))
    theirs, ours = check(file)
    assert theirs[0], "sing-box says it in its check: move it to WRONG"
    assert not ours[0]
    started = subprocess.run(
        [peers.path("sing-box"), "run", "-c", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert started.returncode != 0
    assert "FATAL" in started.stderr
