"""The JSON of a tun inbound: what it comes to, and what is wrong with it in words."""

from __future__ import annotations

import json

import pytest

from gateway import catalog
from gateway.config.load import load
from gateway.config.merge import Source
from gateway.core.errors import ConfigError
from gateway.protocol.tun.options import InboundOptions

ADDRESS = ["172.19.0.1/30", "fdfe:dcba:9876::1/126"]


def config(*tuns, **parts):
    value = {"inbounds": [{"type": "tun", "tag": f"t{n}", **tun} for n, tun in enumerate(tuns)], **parts}
    return load([Source("c.json", json.dumps(value), value)], catalog)


def options(**fields) -> InboundOptions:
    sets = {"rule_set": [{"tag": "some", "rules": [{"ip_cidr": "192.0.2.0/24"}]}]}
    return config({"address": ADDRESS} | fields, route=sets).inbounds[0].options


def test_defaults_are_sing_boxes():
    found = options(auto_route=True, auto_redirect=True)
    assert (found.table, found.rule, found.input_mark, found.output_mark) == (2022, 9000, 0x2023, 0x2024)
    assert found.udp_timeout == 300
    assert found.families == (4, 6)
    assert {family: str(ip) for family, ip in found.names_server.items()} == {4: "172.19.0.2", 6: "fdfe:dcba:9876::2"}


def test_one_value_stands_for_a_list():
    found = options(address="172.19.0.1/30", exclude_uid=5, include_uid_range="0x10:0x20", route_address="192.0.2.0/24")
    assert found.families == (4,)
    assert (found.excluded_uids, found.included_uids) == ([(5, 5)], [(16, 32)])
    assert [str(prefix) for prefix in found.routes] == ["192.0.2.0/24"]


def test_old_fields_are_taken_with_a_note():
    found = config({
        "inet4_address": "172.19.0.1/30", "inet6_address": ["fdfe::1/126"], "inet4_route_address": ["192.0.2.0/24"],
        "inet6_route_exclude_address": "2001:db8::/32", "gso": True, "include_package": ["x"], "stack": "gvisor",
        "endpoint_independent_nat": True, "platform": {"http_proxy": {"enabled": True}}, "include_android_user": 10,
    })  # fmt: skip
    tun = found.inbounds[0].options
    assert [str(prefix) for prefix in tun.addresses] == ["172.19.0.1/30", "fdfe::1/126"]
    assert [str(prefix) for prefix in tun.routes] == ["192.0.2.0/24"]
    assert [str(prefix) for prefix in tun.excluded] == ["2001:db8::/32"]
    assert "\n".join(found.notes) == "\n".join([
        'inbounds[0].inet4_address: deprecated; write "address"',
        'inbounds[0].inet6_address: deprecated; write "address"',
        'inbounds[0].inet4_route_address: deprecated; write "route_address"',
        'inbounds[0].inet6_route_exclude_address: deprecated; write "route_exclude_address"',
        "inbounds[0].gso: deprecated; it is always on where it helps: remove it",
        "inbounds[0].include_android_user: does nothing here (Android): remove it",
        "inbounds[0].include_package: does nothing here (Android): remove it",
        "inbounds[0].platform: does nothing here (told to the graphical clients of Android and Apple): remove it",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("tun", "said"),
    [
        ({}, 'needs "address"'),
        ({"address": "172.19.0.1/33"}, "not an IP prefix"),
        ({"address": ADDRESS, "stack": "lwip"}, "lwip"),
        ({"address": ADDRESS, "mtu": 70000}, "65535"),
        ({"address": ADDRESS, "auto_redirect": True}, 'auto_redirect needs "auto_route": true'),
        ({"address": ADDRESS, "include_uid_range": ["5"]}, '"5" is not a range of users'),
        ({"address": ADDRESS, "exclude_uid_range": ["9:5"]}, '"9:5" is not a range of users'),
        ({"address": ADDRESS, "exclude_uid": -1}, "0"),
        ({"address": ADDRESS, "interface_name": "a name"}, "not an interface name"),
        ({"address": ADDRESS, "interface_name": "x" * 16}, "not an interface name"),
        ({"address": ADDRESS, "interface_name": "\u00e9" * 8}, "not an interface name"),
        ({"address": ADDRESS, "interface_name": ".."}, "not an interface name"),
        ({"address": ADDRESS, "interface_name": "tun%s"}, "not an interface name"),
        ({"address": ADDRESS, "include_interface": ["a", ""]}, 'include_interface: ""'),
        ({"address": ADDRESS, "exclude_interface": "eth*"}, 'exclude_interface: "eth*"'),
        ({"address": "172.19.0.1/30", "mtu": 67}, "mtu: 67 is too small for IPv4, which needs 68"),
        ({"address": ADDRESS, "mtu": 1279}, "mtu: 1279 is too small for IPv6, which needs 1280"),
        ({"address": "255.255.255.255/32"}, "no address of a device"),
        ({"address": "224.0.0.1/24"}, "no address of a device"),
        ({"address": "127.0.0.1/8"}, "no address of a device"),
        ({"address": "172.19.0.1/0"}, "no address of a device"),
        ({"address": ADDRESS, "auto_route": True, "exclude_uid": list(range(257))}, "257 are too many for ip rules"),
        (
            {"address": ADDRESS, "auto_route": True, "exclude_interface": [f"x{n}" for n in range(257)]},
            "exclude_interface: 257 are too many",
        ),
        ({"address": ADDRESS, "iproute2_table_index": 2380}, "of ours"),
        ({"address": ADDRESS, "iproute2_table_index": 2412}, "of ours"),
        ({"address": ADDRESS, "include_interface": "a", "exclude_interface": "b"}, "exclude each other"),
        ({"address": ADDRESS, "exclude_mac_address": ["02:00:00:00:00:01"]}, 'needs "auto_redirect": true'),
        ({"address": ADDRESS, "auto_route": True, "auto_redirect": True, "include_mac_address": ["2:0"]}, "hardware"),
        ({"address": ADDRESS, "iproute2_table_index": 254}, "table of the system"),
        ({"address": ADDRESS, "iproute2_rule_index": 32760}, "32766"),
        ({"address": ADDRESS, "auto_redirect_input_mark": "0x01002023"}, "bits 24 to 31"),
        ({"address": ADDRESS, "auto_redirect_input_mark": "0x2024"}, "must differ"),
        ({"address": ADDRESS, "loopback_address": ["10.7.0.1/32"]}, "loopback_address"),
        ({"address": ADDRESS, "route_adress": []}, 'did you mean "route_address"'),
        ({"address": ADDRESS, "sniff": True}, "not built yet"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tun, said):
    with pytest.raises(ConfigError) as error:
        config(tun)
    assert said in str(error.value)
    assert error.value.path.startswith("inbounds[0]")


def test_what_is_just_within_the_bounds():
    options(mtu=1280, interface_name="tun%d", iproute2_table_index=2413)
    options(mtu=68, address="172.19.0.1/30", interface_name="\u00e9" * 7)
    options(auto_route=True, exclude_uid=list(range(256)), include_interface=[f"x{n}" for n in range(256)])
    options(auto_route=True, auto_redirect=True, exclude_uid=list(range(5000)))


@pytest.mark.parametrize("field", ["route_address_set", "route_exclude_address_set"])
def test_rule_sets_that_nobody_has(field):
    sets = {"rule_set": [{"tag": "some", "rules": [{"ip_cidr": "192.0.2.0/24"}]}]}
    config({"address": ADDRESS, field: ["some"]}, route=sets)
    with pytest.raises(ConfigError, match='no rule set has the tag "other"') as error:
        config({"address": ADDRESS, field: ["some", "other"]}, route=sets)
    assert error.value.path == f"inbounds[0].{field}"


@pytest.mark.parametrize(
    ("one", "other", "field"),
    [
        ({"interface_name": "tun0"}, {"interface_name": "tun0"}, "interface_name"),
        ({"auto_route": True}, {"auto_route": True}, "iproute2_table_index"),
        ({"auto_route": True}, {"auto_route": True, "iproute2_table_index": 2023}, "iproute2_rule_index"),
        (
            {"auto_route": True, "iproute2_rule_index": 9031},
            {"auto_route": True, "iproute2_table_index": 9},
            "iproute2_rule",
        ),
        (
            {"auto_route": True, "auto_redirect": True},
            {"auto_route": True, "auto_redirect": True, "iproute2_table_index": 9, "iproute2_rule_index": 9032},
            "auto_redirect_input_mark",
        ),
    ],
)
def test_two_that_cannot_both_be(one, other, field):
    with pytest.raises(ConfigError) as error:
        config({"address": ADDRESS} | one, {"address": ADDRESS} | other)
    assert error.value.path.startswith(f"inbounds[1].{field}")


def test_two_that_can():
    config(
        {"address": ADDRESS, "auto_route": True},
        {"address": ADDRESS, "auto_route": True, "iproute2_table_index": 9, "iproute2_rule_index": 9032},
        {"address": ADDRESS},
    )
