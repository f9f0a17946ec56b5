"""What of sing-box's ``tls`` object is not built is refused by its place, never passed over."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import catalog
from gateway.config.load import load
from gateway.config.merge import Source
from gateway.core.errors import ConfigError

PLACE = "outbounds[0].tls"
OUTBOUND = {"type": "trojan", "tag": "a", "server": "192.0.2.1", "server_port": 443, "password": "x"}
SERVER = {"type": "https", "tag": "a", "server": "192.0.2.1"}


def refused(value: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load([Source("config.json", "{}", value)], catalog)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("utls", {"enabled": True}),
        ("reality", {"enabled": True, "public_key": "x"}),
        ("ech", {"enabled": True}),
        ("fragment", True),
        ("fragment_fallback_delay", "1s"),
        ("record_fragment", True),
    ],
)
def test_not_built_yet(field: str, value: Any) -> None:
    error = refused({"outbounds": [OUTBOUND | {"tls": {"enabled": True, field: value}}]})
    assert error.path == f"{PLACE}.{field}"
    assert "is not built yet" in error.message
    error = refused({"dns": {"servers": [SERVER | {"tls": {field: value}}]}})
    assert error.path == f"dns.servers[0].tls.{field}"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"min_version": "1.4"}, f"{PLACE}.min_version"),
        ({"max_version": "1.1"}, PLACE),
        ({"kernel_tx": True}, f"{PLACE}.kernel_tx"),
        ({"certificate": "nothing"}, PLACE),
        ({"alpn": [1]}, f"{PLACE}.alpn[0]"),
    ],
)
def test_wrong(fields: dict[str, Any], path: str) -> None:
    assert refused({"outbounds": [OUTBOUND | {"tls": {"enabled": True, **fields}}]}).path == path


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("trojan", {"multiplex": {"enabled": True}}, "not built yet"),
        ("trojan", {"transport": {"type": "ws"}}, "not built yet"),
        ("vless", {"flow": "xtls-rprx-vision"}, "not built yet"),
        ("vless", {"flow": "other"}, "unknown flow"),
        ("vless", {"packet_encoding": "other"}, "packet_encoding"),
        ("vless", {"transport": {"type": "ws"}}, "not built yet"),
    ],
)
def test_of_the_protocols(name: str, fields: dict[str, Any], said: str) -> None:
    own = {"uuid": "x"} if name == "vless" else {"password": "x"}
    outbound = {"type": name, "server": "192.0.2.1", "server_port": 443, **own}
    assert said in str(refused({"outbounds": [outbound | fields]}))
    load([Source("config.json", "{}", {"outbounds": [outbound | {"tls": {"enabled": False}}]})], catalog)
