"""The owned table as text: the skeleton agrees with mark.py, content follows the plan, a reload is a difference."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pytest

from gateway.kernel import mark
from gateway.kernel.nft.diff import clear, prepare, switch
from gateway.kernel.nft.diff import fixed as rules_of
from gateway.kernel.nft.steer_render import Objects, fixed, interval_name, learned_commands, objects
from gateway.kernel.plan import (
    LAST_UID,
    Capture,
    DeviceRow,
    LearnedChange,
    Origin,
    PortRow,
    ProcessPlan,
    Profile,
    SourceClass,
    SourceSpan,
    Span,
    Steering,
    Verdict,
    by_user,
)

SKELETON = (Path(__file__).resolve().parents[4] / "nft/steer.nft").read_text()
CAPTURE = Capture(("br0",), 7893)
TEN = Span(int(ip_address("192.0.2.0")), int(ip_address("192.0.2.255")), Verdict.USER)
SIX = Span(int(ip_address("2001:db8::")), int(ip_address("2001:db8::")), Verdict.REJECT)
ALL = tuple(PortRow(network, 0, 65535, 0) for network in ("tcp", "udp"))


def profile(*spans4, spans6=(), default=Verdict.DIRECT, learned=False):
    return Profile(spans4, spans6, default, default, learned)


def steering(*profiles, rows=ALL, **changes):
    fields = {"origins": (Origin((), (), 0),), "local": (), "unknown": 0}
    return Steering(profiles, (SourceClass(rows),), **(fields | changes))


def test_defines_are_those_of_mark():
    defines = {name: int(value, 16) for name, value in re.findall(r"^define (\w+) = (0x\w+)", SKELETON, re.M)}
    assert defines.pop("KEEP") == 0xFFFFFFFF ^ mark.CLASS
    assert defines == {name: getattr(mark, name) for name in defines}


def test_a_class_of_one_profile_needs_no_port_map():
    found = objects(steering(profile()), CAPTURE, 1)
    assert found.chains["g1_class_0"] == ("goto g1_profile_0",)
    assert found.chains["g1_profile_0"] == ("meta nfproto ipv4 goto to_direct", "meta nfproto ipv6 goto to_direct")


def test_ports_sources_and_socket_classes():
    rows = (PortRow("tcp", 80, 80, 0), PortRow("udp", 1, 9, 1))
    plan = steering(
        profile(),
        profile(),
        rows=rows,
        origins=(Origin((SourceSpan(TEN.first, TEN.last, 0),), (), 0),),
        local=((3, 0), (0, 0)),
    )
    found = objects(plan, CAPTURE, 7)
    assert found.chains["g7_class_0"] == (
        "tcp dport vmap { 80 : goto g7_profile_0 }",
        "udp dport vmap { 1-9 : goto g7_profile_1 }",
    )
    assert found.chains["g7_forwarded"][0] == "ip saddr vmap { 192.0.2.0-192.0.2.255 : goto g7_class_0 }"
    assert "0x18000000 : goto g7_class_0" in found.chains["g7_local"][0]


def test_interfaces_and_hardware_addresses_choose_the_origin():
    origins = tuple(Origin((SourceSpan(number, number, 0),), (), 0) for number in range(3))
    phone, tv = "00:53:00:00:00:01", "00:53:00:00:00:02"
    devices = (DeviceRow("guest", "", 1), DeviceRow("guest", phone, 2), DeviceRow("", tv, 1))
    plan = steering(profile(), origins=origins, devices=devices)
    found = objects(plan, CAPTURE, 3)
    assert found.chains["g3_forwarded"] == (
        'iifname vmap { "guest" : goto g3_interface_0 }',
        f"ether saddr vmap {{ {tv} : goto g3_origin_1 }}",
        "ip saddr vmap { 0.0.0.0 : goto g3_class_0 }",
        "goto g3_class_0",
    )
    assert found.chains["g3_interface_0"] == (f"ether saddr vmap {{ {phone} : goto g3_origin_2 }}", "goto g3_origin_1")
    assert found.chains["g3_origin_2"] == ("ip saddr vmap { 0.0.0.2 : goto g3_class_0 }", "goto g3_class_0")
    assert [plan.origin(*who) for who in (("guest", tv), ("guest", phone), ("lan", tv), ("lan", phone))] == [
        origins[1], origins[2], origins[1], origins[0]
    ]  # fmt: skip


def test_users_come_in_place_of_socket_classes():
    plan = steering(profile(), local=((3, 0),), users=(SourceSpan(0, 999, 0), SourceSpan(1000, 1000, 0)))
    assert objects(plan, CAPTURE, 1).chains["g1_local"] == (
        "meta skuid vmap { 0-999 : goto g1_class_0, 1000 : goto g1_class_0 }",
        "goto g1_class_0",
    )


@pytest.mark.parametrize("uids", [(), ((0, 1),), ((5, 1), (6, 2), (5, 4)), ((LAST_UID, 1), (0, 2))])
def test_users_have_the_class_that_their_mask_has(uids):
    masks = ((0, 0), (1, 3), (2, 4))  # not listed: 5
    plan = steering(profile(), local=((0, 7), (3, 8), (4, 9)), unknown=6)
    processes = ProcessPlan(uids=uids, classes=masks)
    spans = by_user(processes, plan)
    assert (spans[0].first, spans[-1].last) == (0, LAST_UID)
    assert all(after.first == before.last + 1 for before, after in pairwise(spans))
    for uid in (0, 1, 4, 5, 6, 7, LAST_UID - 1, LAST_UID):
        mask = sum({bits for known, bits in uids if known == uid})
        (found,) = (span.number for span in spans if span.first <= uid <= span.last)
        assert found == {0: 7, 1: 8, 2: 9}.get(mask, 6)


@pytest.mark.parametrize("more", [{"paths": (("/bin/sh", 2),)}, {"names": (("sh", 2),)}, {"gids": ((5, 2),)}])
def test_users_do_not_decide_beside_what_they_do_not_tell(more):
    assert by_user(ProcessPlan(uids=((5, 1),), **more), steering(profile())) == ()


def test_local_flows_may_be_left_alone():
    assert objects(steering(profile()), Capture(("br0",), 1, local=False), 1).fixed["local"] == ()


def test_shared_prefixes_come_before_what_a_name_makes_direct():
    plan = steering(profile(learned=True))
    plain = objects(plan, CAPTURE, 1).chains["g1_profile_0"]
    assert not any("@shared" in rule for rule in plain)
    rules = objects(plan, replace(CAPTURE, shared=True), 1).chains["g1_profile_0"]
    for rule, family in (("ip daddr & 255.255.255.0 @shared4 goto to_sniff", 4),
                         ("ip6 daddr & ffff:ffff:ffff:: @shared6 goto to_sniff", 6)):  # fmt: skip
        at = rules.index(rule)
        assert f"@learned{family}_0_user" in rules[at - 1]
        assert f"@learned{family}_0_direct" in rules[at + 1]
    assert len(rules) == len(plain) + 2
    assert objects(steering(profile()), replace(CAPTURE, shared=True), 1) == objects(steering(profile()), CAPTURE, 1)


def test_refused_resolvers():
    plan = steering(profile())
    assert objects(plan, CAPTURE, 1).fixed["refused"] == ()
    doh = ("192.0.2.0/25", "2001:db8::1", "192.0.2.128/25", "198.51.100.1/32")
    refused = "counter name to_resolver goto refuse"
    found = objects(plan, replace(CAPTURE, dot=False, doh=doh), 1)
    assert found.fixed["refused"] == ("goto g1_refused",)
    assert found.chains["g1_refused"] == (
        f"th dport 853 {refused}",
        f"ip daddr {{ 192.0.2.0/24, 198.51.100.1/32 }} th dport 443 {refused}",
        f"ip6 daddr {{ 2001:db8::1/128 }} th dport 443 {refused}",
    )
    with pytest.raises(ValueError, match="flush"):
        objects(plan, replace(CAPTURE, doh=("} ; flush ruleset",)), 1)


def test_equal_intervals_are_one_map():
    found = objects(steering(profile(TEN), profile(TEN, default=Verdict.SNIFF)), CAPTURE, 1)
    assert list(found.intervals) == [interval_name(4, (TEN,))]
    assert interval_name(4, (TEN,)) != interval_name(4, (TEN._replace(verdict=Verdict.SNIFF),))


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (steering(profile(), rows=(PortRow("tcp", 0, 1, 4),)), ValueError),
        (steering(profile(), origins=(Origin((), (), 2),)), ValueError),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_refused(plan, error):
    with pytest.raises(error, match=r"profile|class"):
        objects(plan, CAPTURE, 1)


def test_an_interface_name_cannot_end_its_quotes():
    with pytest.raises(ValueError, match="interface name"):
        objects(steering(profile()), Capture(('a"; flush ruleset',), 1), 1)


def all_of(old, new):
    return "\n".join((*prepare(old, new), *switch(old, new), *clear(old, new)))


def test_what_the_switch_leads_to_stands_and_has_all_sets_with_intervals():
    """Its own rules have none, named or not: those are empty for a moment."""
    ranges = {"origins": (Origin((SourceSpan(1, 9, 0),), (), 0),), "users": (SourceSpan(0, 999, 0),)}
    plan = steering(profile(TEN), rows=(PortRow("tcp", 1, 9, 0),), **ranges)
    capture = Capture(("br0",), 1, 53, doh=("192.0.2.0/25",), peers=("peers4",), paused=("paused4",))
    old, new = objects(steering(profile(SIX._replace(verdict=Verdict.USER))), CAPTURE, 1), objects(plan, capture, 2)
    before, moment = ("\n".join(found) for found in (prepare(old, new), switch(old, new)))
    assert not re.search(r"[{ ][0-9.:]+[-/][0-9]", moment), moment
    for name in re.findall(r"goto (g2_\w+)", moment):
        assert f"add chain inet gateway {name}" in before
    assert all(f"{{ {rows}" in before for rows in ("192.0.2.0-192.0.2.255 :", "0.0.0.1-0.0.0.9 :", "0-999 :", "1-9 :"))
    assert not re.search(r"(add|flush) \w+ inet gateway (?!g2_|ip4_|learned)", before)


def test_a_reload_keeps_maps_of_the_same_content_and_learned_sets():
    old = objects(steering(profile(TEN, spans6=(SIX,), learned=True)), CAPTURE, 1)
    new = objects(steering(profile(TEN, default=Verdict.USER, learned=True)), CAPTURE, 2)
    text = all_of(old, new)
    kept, gone = interval_name(4, (TEN,)), interval_name(6, (SIX,))
    assert f"map inet gateway {kept}" not in text
    assert "set inet gateway learned" not in text
    assert f"delete map inet gateway {gone}" in text
    assert "delete chain inet gateway g1_profile_0" in text
    assert "flush chain inet gateway deliver" not in text
    assert "table" not in text


def test_a_profile_that_is_gone_takes_its_learned_sets():
    old = objects(steering(profile(learned=True)), CAPTURE, 1)
    text = all_of(old, objects(steering(profile()), CAPTURE, 2))
    assert text.count("delete set inet gateway learned4_0_") == 5
    # Rules that look into them go first.
    assert text.index("flush chain inet gateway g1_profile_0") < text.index("delete set")


def test_interfaces_are_added_and_taken_away():
    plan = steering(profile())
    text = all_of(objects(plan, CAPTURE, 1), objects(plan, Capture(("br1",), 7893, 53), 2))
    assert 'delete element inet gateway lans { "br0" }' in text
    assert 'add element inet gateway lans { "br1" }' in text
    assert "add element inet gateway captured { 53 }" in text


def test_many_intervals_are_split_into_commands():
    spans = tuple(Span(n * 4, n * 4 + 1, Verdict.USER) for n in range(2500))
    text = all_of(Objects(), objects(steering(profile(*spans)), CAPTURE, 1))
    assert text.count("add element inet gateway ip4_") == 3


def test_learned_changes_as_text():
    change = LearnedChange(2, 4, TEN.first, Verdict.USER, Verdict.SNIFF, 60)
    assert list(learned_commands(change)) == [
        "add element inet gateway learned4_2_user { 192.0.2.0 timeout 60s }",
        "delete element inet gateway learned4_2_user { 192.0.2.0 }",
        "add element inet gateway learned4_2_sniff { 192.0.2.0 timeout 60s }",
    ]
    assert list(learned_commands(change._replace(old=None, new=None))) == []


def test_what_stays_within_is_accepted_and_the_way_out_is_asked_first():
    here = "fib daddr type { local, broadcast, multicast, anycast } accept"
    assert objects(steering(profile()), CAPTURE, 1).fixed["within"] == (
        here, 'iifname "br0" fib daddr oifname { "br0" } accept'
    )  # fmt: skip
    with_uplink = replace(CAPTURE, wans=("wan0", "wan1"))
    assert objects(steering(profile()), with_uplink, 1).fixed["within"][:2] == (
        'fib daddr oifname { "wan0", "wan1" } return', here
    )  # fmt: skip


def test_nobody_pays_for_pauses_where_nothing_is_paused():
    plan, capture = steering(profile()), replace(CAPTURE, dns_port=5353)
    plain = objects(plan, capture, 1)
    assert "paused" not in str(plain.fixed)
    some = fixed(plan, replace(capture, paused=("paused4", "paused_mac")), 1)
    who = ("ip saddr @paused4 ", "ether saddr @paused_mac ")
    assert some["refused"] == tuple(f"{one}goto to_direct" for one in who)
    assert some["capture"] == (
        *(f"{one}{verdict}" for one in who for verdict in ("fib daddr type != local goto to_direct", "accept")),
        *plain.fixed["capture"],
    )
    assert some["local"] == plain.fixed["local"], "this host is no device"
    assert {name for name in some if some[name] != plain.fixed[name]} == {"refused", "capture"}


def test_everything_paused():
    plan, capture = steering(profile()), replace(CAPTURE, dns_port=5353, doh=("192.0.2.1",))
    found = fixed(plan, replace(capture, paused=("all",)), 1)
    assert found["refused"][0] == "goto to_direct"
    assert found["capture"][:2] == ("fib daddr type != local goto to_direct", "accept")
    assert found["local"] == ("oifname @lans accept", "goto to_direct")
    text = "\n".join(rules_of(objects(plan, capture, 1).fixed, found))
    assert text.splitlines()[:2] == ["flush chain inet gateway refused", "add rule inet gateway refused goto to_direct"]
    assert "flush chain inet gateway forwarded" not in text


def test_what_goes_to_who_is_logged_in_is_direct_before_any_rule():
    plan = steering(profile(), local=((3, 0),))
    found = fixed(plan, replace(CAPTURE, peers=("peers4", "peers6")), 1)
    to = ("ip daddr @peers4 goto to_direct", "ip6 daddr @peers6 goto to_direct")
    assert found["local"] == ("oifname @lans accept", *to, *objects(plan, CAPTURE, 1).fixed["local"][1:])
    assert all("@peers" not in rule for name, rules in found.items() if name != "local" for rule in rules)
