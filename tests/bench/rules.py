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


GEOSITE = "geosite-cn"
BY_DEVICE: list[dict[str, Any]] = [
    {"source_mac_address": ["00:53:00:00:01:01", "00:53:00:00:01:02"], "outbound": "proxy"},
    {"source_mac_address": ["00:53:00:00:01:03"], "domain_suffix": ["games.example"], "action": "reject"},
    {"source_mac_address": ["00:53:00:00:01:04"], "rule_set": GEOSITE, "outbound": "proxy"},
    {"source_interface": ["guest"], "ip_is_private": True, "action": "reject"},
]
"""Of devices that do not take part; sing-box 1.12 has no such rules."""


def household(*more: str) -> dict[str, Any]:
    """Outbounds and route; ``more``: rule sets of names, direct, beside the 20 rules. AssertionError where one is not
    beside the checkout."""
    rules = [*BY_ADDRESS, *BY_NAME]
    assert len(rules) == 20
    rules += [{"rule_set": tag, "outbound": "direct"} for tag in more]
    sets = []
    for tag in ("geoip-cn", *more):
        file = SETS / f"{tag}.srs"
        assert file.exists(), f"{file} is missing; it comes with the project's shared data"
        sets.append({"type": "local", "tag": tag, "format": "binary", "path": str(file)})
    return {
        "log": {"level": "warn"},
        "outbounds": OUTBOUNDS,
        "route": {
            "rules": rules,
            "rule_set": sets,
            "final": "direct",
        },
    }
