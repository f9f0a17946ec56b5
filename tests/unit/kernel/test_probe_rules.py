"""What the probe makes of other people's rules, from the listings that nft gives of them."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest

from gateway.kernel import mark, probe
from gateway.kernel.probe import diversions, limits, marks, neighbours, policies, settings
from gateway.kernel.probe.ruleset import parse

ACCEPT, DROP = {"accept": None}, {"drop": None}
FORWARD = ("ct", mark.CLASS, mark.DIRECT)


def rule(chain: str, *expr: object, table: str = "a", handle: int = 7) -> dict[str, Any]:
    return {"rule": {"family": "inet", "table": table, "chain": chain, "handle": handle, "expr": list(expr)}}


def chain(name: str, policy: str = "drop", **more: Any) -> dict[str, Any]:
    base = {"family": "inet", "table": "a", "name": name, "type": "filter", "hook": name, "prio": 0, "policy": policy}
    return {"chain": base | more}


def plain(name: str) -> dict[str, Any]:
    return {"chain": {"family": "inet", "table": "a", "name": name}}


def match(left: object, right: object, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def marked(key: str, mask: int, value: int) -> dict[str, Any]:
    return match({"&": [{key: {"key": "mark"}}, mask]}, value)


def lacks(*objects: dict[str, Any], lans: tuple[str, ...] = (), wans: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    found = policies.dropping(parse(list(objects), lans, wans))
    return [(where[2], passage.text) for _, where, passage in found]


DIRECT = [("forward", "ct mark & 0x07000000 == 0x02000000")]


def test_a_policy_that_drops_is_found_where_no_rule_lets_ours_pass() -> None:
    assert lacks(chain("forward", table="gateway_base")) == []
    assert lacks(chain("forward", "accept")) == []
    assert lacks(chain("forward", family="bridge"), chain("postrouting")) == []
    assert lacks(chain("forward")) == DIRECT
    ours = marked(*FORWARD)
    assert lacks(chain("forward"), rule("forward", ours, ACCEPT)) == []
    assert lacks(chain("forward"), rule("forward", {"counter": {"packets": 1}}, ours, ACCEPT)) == []
    for other in (
        rule("forward", ours, ACCEPT, table="b"),
        rule("forward", marked("meta", *FORWARD[1:]), ACCEPT),
        rule("forward", ours, {"limit": {"rate": 1, "per": "second"}}, ACCEPT),
        rule("forward", marked("ct", 1, 1), ACCEPT),
        rule("forward", match({"meta": {"key": "iifname"}}, "eth0"), ACCEPT),
    ):
        assert lacks(chain("forward"), other) == DIRECT
    leading = match({"ct": {"key": "mark"}}, {"prefix": {"addr": mark.DIRECT, "len": 8}})
    assert lacks(chain("forward"), rule("forward", leading, ACCEPT)) == DIRECT  # bits 27-31 are open
    found = lacks(chain("input"), rule("input", marked("meta", mark.ROUTE, mark.ROUTE), ACCEPT))
    assert found == [("input", "ct mark & 0x07000000 == 0x05000000")]


@pytest.mark.parametrize("way", ["jump", "goto", "vmap"])
def test_a_chain_that_accepts_by_policy_and_rejects_at_its_end(way: str) -> None:
    """firewalld: filter_FORWARD jumps to its zones, then rejects."""
    step = {way: {"target": "zone"}}
    if way == "vmap":
        step = {
            "vmap": {"key": {"meta": {"key": "iifname"}}, "data": {"set": [["br-lan", {"jump": {"target": "zone"}}]]}}
        }
    objects = [chain("forward", "accept"), plain("zone"), rule("forward", step), rule("forward", {"reject": None})]
    lines = {
        ("forward", 'iifname "br-lan" oifname { "br-lan", "wan" }'),
        ("forward", 'iifname "wan" oifname "br-lan" ct state established,related'),
    }
    found = set(lacks(*objects, lans=("br-lan",), wans=("wan",)))
    assert found == (lines if way != "goto" else set())
    answers = rule("zone", match({"ct": {"key": "state"}}, ["established", "related"], "in"), ACCEPT)
    zone = rule("zone", match({"meta": {"key": "iifname"}}, "br-*"), ACCEPT)
    found = set(lacks(*objects, zone, answers, lans=("br-lan",), wans=("wan",)))
    assert found == (
        {("forward", 'iifname "wan" oifname "br-lan" ct state established,related')} if way == "vmap" else set()
    )


def test_declared_forwards_need_their_lines() -> None:
    six = match({"payload": {"protocol": "ip6", "field": "daddr"}}, "2001:db8:1::3")
    port = match({"payload": {"protocol": "tcp", "field": "dport"}}, 80)
    objects = [chain("forward"), rule("forwards", {"dnat": {}}, table="gateway_base"),
               rule("pinholes", six, port, ACCEPT, table="gateway_base")]  # fmt: skip
    texts = [text for _, text in lacks(*objects, lans=("lan",), wans=("wan",))]
    assert texts[2:] == ["ct status dnat", "ip6 daddr 2001:db8:1::3 tcp dport 80"]
    dnat = rule("forward", match({"ct": {"key": "status"}}, "dnat", "in"), ACCEPT)
    texts = [text for _, text in lacks(*objects, dnat, lans=("lan",), wans=("wan",))]
    assert texts[2:] == ["ip6 daddr 2001:db8:1::3 tcp dport 80"]


def test_docker_has_a_chain_for_such_lines() -> None:
    jump = {"jump": {"target": "DOCKER-USER"}}
    objects = [chain("FORWARD", hook="forward"), plain("DOCKER-USER"), rule("FORWARD", {"counter": {}}, jump)]
    assert lacks(*objects) == [("DOCKER-USER", DIRECT[0][1])]
    assert lacks(*objects, rule("DOCKER-USER", marked(*FORWARD), ACCEPT)) == []


def test_a_table_with_an_owner_takes_no_lines() -> None:
    owned = {"table": {"family": "inet", "name": "a", "flags": ["owner"]}}
    (found,) = policies.foreign_policies(parse([owned, chain("forward")]))
    assert not found.ok
    assert not found.remedy
    assert "owns its table" in found.detail


def test_chains_that_lead_in_a_circle_end() -> None:
    objects = [
        chain("forward"),
        plain("b"),
        rule("forward", {"jump": {"target": "b"}}),
        rule("b", {"jump": {"target": "b"}}),
    ]
    assert lacks(*objects) == DIRECT


def test_diversions_by_others() -> None:
    def tproxy(port: int) -> dict[str, Any]:
        return {"tproxy": {"port": port}}

    listed = [{"metainfo": {}}, rule("deliver", tproxy(6), table="gateway"), rule("c", ACCEPT, table="docker"),
              rule("c", tproxy(5), table="other"), rule("c", {"redirect": {"port": 2}}, table="nat", handle=8),
              rule("c", {"redirect": None}, table="nat", handle=9)]  # fmt: skip
    ruleset = parse(listed)
    ruleset.ports.add(5)
    (found,) = diversions.foreign_chains(ruleset)
    assert found.detail.startswith("inet other c handle 7 to our port 5, inet nat c handle 8 to port 2, ")
    assert found.remedy.split("; ") == [f"nft delete rule inet {what}" for what in
                                        ("other c handle 7", "nat c handle 8", "nat c handle 9")]  # fmt: skip
    (found,) = diversions.foreign_chains(parse(listed[:3]))
    assert found.ok
    ports = [{"range": [8000, 8010]}, {"map": {"key": {}, "data": {"set": [[80, 8080]]}}}]
    listed = [rule("c", {"redirect": {"port": port}}, handle=at) for at, port in enumerate(ports)]
    (found,) = diversions.foreign_chains(parse(listed))
    assert found.detail.startswith("inet a c handle 0 to port 8000-8010, inet a c handle 1 to port by a map: ")


def test_a_listing_of_another_shape_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"rule": {**rule("c")["rule"], "expr": 5}}
    monkeypatch.setattr(probe, "read", lambda: parse([odd]))
    found = {one.name: one for one in probe.conflicts()}
    assert "could not be looked at" in found["foreign-marks"].detail
    monkeypatch.setattr(probe, "read", lambda: parse([{"table": {}}]))
    assert "could not be looked at" in {one.name: one for one in probe.conflicts()}["rules"].detail


@pytest.mark.parametrize(
    ("prio", "statement", "ok", "told"),
    [(-300, {"queue": {"num": 0}}, False, "queues"), (-300, {"notrack": None}, False, "does not track"),
     (-300, DROP, True, "drops"), (-300, ACCEPT, True, ""), (-150, {"queue": {"num": 0}}, True, "")],
)  # fmt: skip
def test_what_is_done_before_us(prio: int, statement: dict[str, Any], ok: bool, told: str) -> None:
    objects = [chain("prerouting", "accept", prio=prio), plain("b"), rule("prerouting", {"jump": {"target": "b"}}),
               rule("b", statement)]  # fmt: skip
    (found,) = diversions.earlier_hooks(parse(objects))
    assert found.ok is ok
    assert (told in found.detail) if told else not found.detail


def test_flowtables_are_told() -> None:
    (found,) = diversions.flowtables(parse([{"flowtable": {"family": "inet", "table": "fw4", "name": "ft"}}]))
    assert found.ok
    assert "inet fw4 ft" in found.detail


META, CT = {"meta": {"key": "mark"}}, {"ct": {"key": "mark"}}


@pytest.mark.parametrize(
    ("key", "value", "hook", "prio", "hurts"),
    [
        (META, 16, "prerouting", -150, True),
        (META, 16, "prerouting", -300, False),
        (META, mark.ROUTE, "prerouting", -300, True),
        (META, 16, "forward", 0, False),
        (META, {"|": [{"&": [META, 0xFFFFC0FF]}, 0x100]}, "prerouting", -150, False),
        (META, {"|": [{"&": [META, 0x00FFC0FF]}, 0x100]}, "output", -150, True),
        (META, {"^": [META, 0x01000000]}, "output", -150, True),
        (META, CT, "prerouting", -150, True),
        (META, {"&": [CT, 0x3F00]}, "prerouting", -150, True),
        (CT, 16, "forward", 0, True),
        (CT, META, "postrouting", 0, True),
        (CT, {"|": [{"&": [CT, 0xFF00FFFF]}, 0x40000]}, "prerouting", -150, False),
    ],
)
def test_who_writes_our_byte(key: dict, value: object, hook: str, prio: int, hurts: bool) -> None:
    objects = [chain(hook, "accept", prio=prio), plain("b"), rule(hook, {"jump": {"target": "b"}}),
               rule("b", {"mangle": {"key": key, "value": value}})]  # fmt: skip
    (found,) = marks.foreign_marks(parse(objects))
    assert found.ok is not hurts
    assert not hurts or "inet a b handle 7" in found.detail


@pytest.mark.parametrize(
    ("words", "hurts"),
    [
        ("MARK --set-xmark 0x100/0x3f00", False),
        ("MARK --set-xmark 0x100/0xffffffff", True),
        ("MARK --set-xmark 0x1000000/0x0", True),
        ("CONNMARK --save-mark --nfmask 0x3f00 --ctmask 0x3f00", False),
        ("CONNMARK --save-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000", False),
        ("CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff", True),
        ("CONNMARK --set-xmark 0x1/0xffffffff", True),
        ("ACCEPT", False),
    ],
)
def test_iptables_writes_marks_too(words: str, hurts: bool) -> None:
    line = f"-A PREROUTING -i br-lan -j {words}"
    assert list(marks.unmasked(f"*mangle\n:PREROUTING ACCEPT [0:0]\n{line}\nCOMMIT\n")) == ([line] if hurts else [])


@pytest.mark.parametrize(("priority", "early"), [(0, False), (100, True), (mark.RULE_PRIORITY, False), (1001, False)])
def test_ip_rules_that_come_before_ours(priority: int, early: bool) -> None:
    assert marks.precedes({"priority": priority}) is early


def test_lines_for_a_shell_are_quoted_and_name_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {"priority": 90, "fwmark": "0x1000000", "fwmask": "0xff000000", "table": "7"}
    monkeypatch.setattr(marks, "answer", lambda *words: [foreign] if "-4" in words else [])
    found = next(marks.ip_rules())
    assert found.remedy == "ip -4 rule del priority 90 fwmark 0x1000000/0xff000000"
    assert settings._loose("eth0.10") == "sysctl -w net/ipv4/conf/eth0.10/rp_filter=2"
    dropped = policies.dropping(parse([chain("forward")], ("a;b'c",)))
    lines = [line for place, where, passage in dropped for line in policies._lines(place, where, passage)]
    for line in (settings._loose("a;b'c"), *lines):
        assert sum("a;b'c" in word for word in shlex.split(line, posix=True)) == 1, line
    assert lines


def test_neighbours_are_known_by_name() -> None:
    listed = [{"table": {"family": "inet", "name": "fw4"}}, {"table": {"family": "inet", "name": "gateway"}},
              plain("mwan3_hook"), plain("DOCKER-USER"), plain("forward")]  # fmt: skip
    found = neighbours.present(parse(listed), ["lo", "tailscale0", "docker0", "virbr0", "eth0"])
    assert found == {"fw4": "table inet fw4", "mwan3": "chain inet a mwan3_hook", "Docker": "chain inet a DOCKER-USER",
                     "Tailscale": "interface tailscale0", "libvirt": "interface virbr0"}  # fmt: skip
    assert neighbours.present(parse([]), ["lo"]) == {}


@pytest.mark.parametrize(
    ("limit", "count", "remedy"),
    [(65536, 100, ""), (4096, 0, "65536"), (65536, 60000, "131072"), (262144, 250000, "524288")],
)
def test_room_for_connections(limit: int, count: int, remedy: str) -> None:
    found = limits.tracked(limit, count)
    assert found.ok is not bool(remedy)
    assert found.remedy == (f"sysctl -w net.netfilter.nf_conntrack_max={remedy}" if remedy else "")
    assert found.needed is (count > 0.8 * limit)


@pytest.mark.parametrize(
    ("hard", "most", "may", "ok"),
    [
        (524288, 1 << 20, False, True),
        (1024, 1 << 20, True, True),
        (1024, 1 << 20, False, False),
        (1024, 20000, True, False),
    ],
)
def test_room_for_files(hard: int, most: int, may: bool, ok: bool) -> None:
    found = limits.files(hard, most, may)
    assert found.ok is ok
    assert ("LimitNOFILE=65536" in found.remedy) is not ok
    assert not subprocess.run(["sh", "-n", "-c", found.remedy]).returncode, "a line for a shell"
    assert ("fs.nr_open" in found.remedy) is (most < 65536)
