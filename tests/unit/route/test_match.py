"""Groups, marks and invert of the matcher."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.core.errors import ConfigError
from gateway.core.flow import Device, Findings, Flow, Process
from gateway.route.match import Subject, matches
from gateway.route.options import ROUTE_ITEMS, parse_headless, parse_match


def subject(domain: str = "", sets: Any = None, **fields: Any) -> Subject:
    source = Address.of(fields.pop("source", "192.168.8.2"), fields.pop("source_port", 4000))
    to = Address.of(fields.pop("to", "203.0.113.1"), fields.pop("port", 443))
    flow = Flow(
        fields.pop("network", "tcp"),
        "in",
        "tproxy",
        source,
        to,
        fields.pop("user", ""),
        fields.pop("process", None),
        device=fields.pop("device", None),
    )
    return Subject.of(flow, Findings(domain=domain, **fields), sets or {})


def holds(rule: dict[str, Any], one: Subject) -> bool:
    return matches(parse_match(rule, "", ROUTE_ITEMS), one)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"domain": "a.example", "ip_cidr": "203.0.113.0/24"}, True),  # one group
        ({"domain": "b.example", "ip_cidr": "203.0.113.0/24"}, True),
        ({"domain": "b.example", "ip_cidr": "198.51.100.0/24"}, False),
        ({"domain": "a.example", "port": 80}, False),  # two groups
        ({"domain": "a.example", "port": 80, "port_range": "400:500"}, True),
        ({"domain": "a.example", "source_ip_cidr": "10.0.0.0/8", "source_ip_is_private": True}, True),
        ({"domain": "a.example", "source_port": 1, "source_port_range": ":4000"}, True),
        ({"domain": "a.example", "network": "udp"}, False),
        ({"domain": "a.example", "invert": True}, False),
        ({"network": "udp", "invert": True}, True),
        ({"invert": True, "inbound": []}, True),  # nothing is tested
        ({"type": "logical", "mode": "and", "rules": [{"port": 443}, {"network": "tcp"}]}, True),
        ({"type": "logical", "mode": "and", "rules": [{"port": 443}, {"network": "udp"}], "invert": True}, True),
        ({"type": "logical", "mode": "or", "rules": [{"port": 80}, {"network": "tcp"}]}, True),
        ({"type": "logical", "mode": "or", "rules": [{"port": 443}], "invert": True}, False),
    ],
)
def test_combination(rule: dict[str, Any], expected: bool) -> None:
    assert holds(rule, subject("a.example")) is expected


def test_rule_sets_share_groups_with_the_outer_rule() -> None:
    sets = {
        "address": (parse_headless({"ip_cidr": "203.0.113.0/24"}, ""),),
        "both": (parse_headless({"domain": "b.example", "port": 443}, ""),),
        "port": (parse_headless({"port": 80}, ""),),
        "source": (parse_headless({"ip_cidr": "192.168.8.0/24"}, ""),),
    }
    one = subject("a.example", sets)
    assert holds({"domain": "b.example", "rule_set": "address"}, one), "the set's address fills the outer group"
    assert holds({"domain": "a.example", "rule_set": "both"}, one), "the outer name counts inside"
    assert not holds({"rule_set": "both"}, one)
    assert not holds({"domain": "a.example", "rule_set": "port"}, one)
    assert holds({"port": 443, "rule_set": "port"}, one)
    assert holds({"rule_set": ["port", "address"]}, one), "any of the sets"
    assert not holds({"rule_set": "source"}, one)
    assert holds({"rule_set": "source", "rule_set_ip_cidr_match_source": True}, one)


def test_marks_are_kept_from_one_inner_rule_to_the_next() -> None:
    rules = ({"ip_cidr": "203.0.113.0/24", "network": "udp"}, {"domain": "none.example", "port": 443})
    one = subject("a.example", {"s": tuple(parse_headless(rule, "") for rule in rules)})
    assert holds({"rule_set": "s"}, one)


def test_resolved_addresses_and_names() -> None:
    one = subject(to="a.example", addresses=(ip_address("198.51.100.1"), ip_address("2001:db8::1")))
    assert holds({"ip_cidr": "2001:db8::/32"}, one)
    assert not holds({"ip_is_private": True}, one)
    assert not holds({"ip_version": 4}, one)
    assert holds({"domain": "a.example"}, subject("shown.example", to="a.example")), "the destination's own name wins"
    assert holds({"domain": "new.example"}, subject(learned=("new.example", "old.example")))
    assert not holds({"domain": "old.example"}, subject(learned=("new.example", "old.example")))
    assert holds({"domain": "shown.example"}, subject("Shown.Example", learned=("new.example",)))


def test_addresses_can_be_left_out() -> None:
    one = subject("a.example")
    one.ignore_addresses = True
    assert holds({"ip_cidr": "198.51.100.0/24"}, one)
    assert not holds({"ip_cidr": "198.51.100.0/24", "port": 80}, one)
    assert not holds({"ip_cidr": "198.51.100.0/24", "domain": "b.example"}, one)


def test_processes() -> None:
    one = subject(process=Process("/usr/bin/curl", 1000, "alice"))
    assert holds({"process_name": "curl", "user": "alice", "user_id": 1000}, one)
    assert holds({"process_path": "/usr/bin/curl"}, one)
    assert holds({"process_path_regex": "^/usr/.*l$"}, one)
    assert not holds({"process_name": "curl", "user_id": 0}, one)
    for rule in ({"process_name": "curl"}, {"user": "alice"}, {"user_id": 1000}, {"process_path_regex": "."}):
        assert not holds(rule, subject()), "a forwarded flow has no process"


def test_groups() -> None:
    one = subject(process=Process("/usr/bin/curl", 1000, "alice", (100, 27, 999), groups=("users", "sudo")))
    for rule in ({"group": "users"}, {"group": ["none", "sudo"]}, {"group_id": 100}, {"group_id": [5, 27]}):
        assert holds(rule, one), rule
        assert not holds(rule, subject()), "a forwarded flow has no process"
        assert not holds(rule, subject(process=Process("/usr/bin/curl"))), "nothing is known of its groups"
    assert holds({"group": "sudo", "group_id": 999}, one)
    assert not holds({"group": "sudo", "group_id": 998}, one), "two keys are two conditions, as user and user_id"
    for rule in ({"group": "alice"}, {"group_id": [0, 1000]}):
        assert not holds(rule, one)


def test_devices_and_their_absence() -> None:
    phone = Device("00:53:00:00:00:01", "lan", "phone")
    for rule in ({"source_mac_address": "00-53-00-00-00-01"}, {"source_hostname": ["tv", "Phone"]},
                 {"source_interface": "lan", "source_hostname": "phone"}):  # fmt: skip
        assert holds(rule, subject(device=phone))
        assert not holds(rule, subject(device=Device("00:53:00:00:00:02", "lan", "")))
        assert not holds(rule, subject()), "a flow of this host"
        assert holds({**rule, "invert": True}, subject())
    assert not holds({"source_interface": "guest", "source_hostname": "phone"}, subject(device=phone)), "two conditions"


def test_every_name_of_a_user_counts() -> None:
    one = subject(process=Process("/usr/bin/curl", 0, "root", aliases=("toor", "admin")))
    for name, held in (("root", True), ("toor", True), ("admin", True), ("daemon", False)):
        assert holds({"user": name}, one) == held


def test_cgroups() -> None:
    one = subject(process=Process("/usr/bin/curl", cgroup="/system.slice/foo.service/worker"))
    for path in ("/", "/system.slice", "/system.slice/", "/system.slice/foo.service/worker", ["/x", "/system.slice"]):
        assert holds({"cgroup": path}, one), path
        assert not holds({"cgroup": path}, subject()), "a forwarded flow has no process"
        assert not holds({"cgroup": path}, subject(process=Process("/usr/bin/curl"))), "nothing is known of its cgroup"
        assert not holds({"cgroup": path, "invert": True}, one)
    for path in ("/system", "/system.slice/foo", "/foo.service", "/system.slice/foo.service/worker/1", "/user.slice"):
        assert not holds({"cgroup": path}, one), path
        assert holds({"type": "logical", "mode": "or", "rules": [{"cgroup": path}, {"cgroup": "/system.slice"}]}, one)
    assert holds({"cgroup": "/"}, subject(process=Process("/sbin/init", cgroup="/")))


@pytest.mark.parametrize(
    "rule", [{"group": "vpn"}, {"cgroup": "/a"}, {"type": "logical", "mode": "or", "rules": [{"group_id": 1}]}]
)
def test_items_of_our_own_are_not_for_rule_sets(rule: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r'"(group|group_id|cgroup)" is not for rule sets'):
        parse_headless(rule, "")
