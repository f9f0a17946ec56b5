"""Twenty rules of a household, one file for us and for sing-box. Pure.

The rule that decides the measured flow, ``MEASURED``, stands behind a rule set of 8,000 prefixes and above the rules
that need a name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MEASURED = "198.51.100.0/24"
SETS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "rule-set"
OUTBOUNDS: list[dict[str, Any]] = [
    {"type": "direct", "tag": "direct"},
    {"type": "socks", "tag": "proxy", "server": "203.0.113.88", "server_port": 1080},
]
BY_ADDRESS: list[dict[str, Any]] = [
    {"source_ip_cidr": ["192.168.250.0/24"], "outbound": "proxy"},
    {"ip_cidr": ["203.0.113.0/26", "2001:db8:bad::/48"], "action": "reject"},
    {"network": "udp", "port": [443], "ip_cidr": ["203.0.113.128/25"], "action": "reject"},
    {"network": "tcp", "port_range": ["6881:6999"], "action": "reject"},
    {"ip_is_private": True, "outbound": "direct"},
    {"rule_set": "geoip-cn", "outbound": "direct"},
    {"ip_cidr": [MEASURED, "2001:db8:f::/64"], "outbound": "direct"},
    {"port": [22, 123, 853], "outbound": "direct"},
]
BY_NAME: list[dict[str, Any]] = [
    {"action": "sniff"},
    {"domain": ["ads.example", "track.example"], "action": "reject"},
    {"domain_suffix": ["bench.example"], "outbound": "proxy"},
    {"domain_suffix": [".far.example", ".video.example"], "outbound": "proxy"},
    {"domain_keyword": ["telemetry"], "action": "reject"},
    {"domain_suffix": ["lan.example"], "outbound": "direct"},
    {"domain": ["www.shop.example"], "outbound": "direct"},
    {"domain_suffix": ["cdn.example"], "port": [443], "outbound": "direct"},
    {"protocol": ["bittorrent"], "action": "reject"},
    {"domain_regex": ["^img[0-9]+\\.photo\\.example$"], "outbound": "proxy"},
    {"network": "tcp", "domain_suffix": ["mail.example"], "port": [465, 993], "outbound": "direct"},
    {"domain_suffix": ["news.example"], "source_ip_cidr": ["192.168.0.0/16"], "outbound": "proxy"},
]


def household() -> dict[str, Any]:
    """Outbounds and route. AssertionError where the rule set is not beside the checkout."""
    file = SETS / "geoip-cn.srs"
    assert file.exists(), f"{file} is missing; it comes with the project's shared data"
    rules = [*BY_ADDRESS, *BY_NAME]
    assert len(rules) == 20
    return {
        "log": {"level": "warn"},
        "outbounds": OUTBOUNDS,
        "route": {
            "rules": rules,
            "rule_set": [{"type": "local", "tag": "geoip-cn", "format": "binary", "path": str(file)}],
            "final": "direct",
        },
    }
