"""LANs in the configuration: bridges of listed ports, and an uplink that is a LAN too."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.core.errors import ConfigError
from gateway.host import base_plan
from gateway.kernel.nft.library import folder
from gateway.kernel.nft.render import base
from gateway.options import decode_section

TEXT, GUARD = ((folder() / name).read_text() for name in ("base.nft", "guard.nft"))
STATIC = {"interface": "eth0", "static": {"address": ["192.0.2.2/24"], "gateway": ["192.0.2.1"]}}
ARM: dict[str, Any] = {"uplinks": [STATIC], "lans": [{"interface": "eth0"}]}


def section(value: dict[str, Any]) -> Any:
    return decode_section(value, "gateway")


def test_an_uplink_may_be_a_lan_too() -> None:
    assert section(ARM).arms == ("eth0",)
    assert section({"uplinks": [STATIC], "lans": [{"interface": "eth1"}]}).arms == ()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"uplinks": [STATIC, STATIC]}, "gateway.uplinks[1].interface"),
        ({"lans": [{"interface": "a"}, {"interface": "a"}]}, "gateway.lans[1].interface"),
        ({**ARM, "lans": [{"interface": "eth0"}, {"interface": "eth0"}]}, "gateway.lans[1].interface"),
        ({**ARM, "lans": [{"interface": "eth0", "address": ["192.0.2.3/24"]}]}, "gateway.lans[0].address"),
        ({**ARM, "lans": [{"interface": "eth0", "ports": ["eth1"]}]}, "gateway.lans[0].ports"),
        ({"uplinks": [STATIC], "lans": [{"interface": "br", "ports": ["eth1", "eth0"]}]}, "gateway.lans[0].ports[1]"),
        ({"lans": [{"interface": "br", "ports": ["a", "a"]}]}, "gateway.lans[0].ports[1]"),
        ({"lans": [{"interface": "br", "ports": ["br"]}]}, "gateway.lans[0].ports[0]"),
        ({"lans": [{"interface": "a", "ports": ["b"]}, {"interface": "b"}]}, "gateway.lans[1].interface"),
    ],
)
def test_else_an_interface_has_one_role(value: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        section(value)
    assert caught.value.path == path


def test_an_arm_is_no_border_and_is_translated() -> None:
    plan = base_plan(section(ARM))
    assert (plan.wans, plan.lans, plan.arms) == ((), ("eth0",), ("eth0",))
    text = base(plan, TEXT, GUARD)
    assert 'iifname { "eth0" } oifname { "eth0" } masquerade' in text
    assert "nd-redirect drop" in text
    assert "add element inet gateway_base wans" not in text
    assert "guard" not in text
    closed = base(base_plan(section({**ARM, "fail": "closed"})), TEXT, GUARD)
    assert 'guard iifname @lans oifname { "eth0" } jump leaving' in closed
    assert "nd-redirect" not in base(base_plan(section({"uplinks": [STATIC]})), TEXT, GUARD)
