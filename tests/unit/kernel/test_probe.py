"""What the probe makes of other people's rules, and that it looks without touching."""

from __future__ import annotations

import pytest

from gateway.kernel import cgroup, mark, probe


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"priority": 100}, False),
        ({"priority": 100, "fwmark": "0x1"}, True),
        ({"priority": 100, "fwmark": "0x1", "fwmask": "0xff"}, False),
        ({"priority": 100, "fwmark": "0x80000", "fwmask": "0xff0000"}, False),
        ({"priority": 100, "fwmark": "0x1000000", "fwmask": "0x1000000"}, True),
        ({"priority": mark.RULE_PRIORITY, "fwmark": "0x1000000", "fwmask": "0x1000000"}, False),
    ],
)
def test_rules_that_read_our_byte(rule: dict, expected: bool) -> None:
    assert probe.overlaps(rule) is expected


def test_foreign_diversions() -> None:
    def rule(table: str, *expr: object) -> dict:
        return {"rule": {"family": "inet", "table": table, "chain": "c", "expr": list(expr)}}

    tproxy = {"tproxy": {"port": 1}}
    listed = [
        {"metainfo": {}},
        rule("gateway", tproxy),
        rule("gateway_tun_3", tproxy),
        rule("docker", {"counter": None}),
        rule("other", tproxy, tproxy),
    ]
    listed += [rule("nat", {"redirect": {"port": 2}}), rule("nat", {"redirect": None})]
    assert probe.diverting(listed) == [("inet", "other", "c"), ("inet", "nat", "c")]


def test_policies_of_others() -> None:
    def chain(table: str, hook: str, policy: str = "drop", family: str = "inet") -> dict:
        return {"chain": {"family": family, "table": table, "name": hook, "hook": hook, "policy": policy}}

    def accept(table: str, hook: str, key: str, mask: int, value: int, *more: object) -> dict:
        match = {"match": {"op": "==", "left": {"&": [{key: {"key": "mark"}}, mask]}, "right": value}}
        return {"rule": {"family": "inet", "table": table, "chain": hook, "expr": [match, *more, {"accept": None}]}}

    forward = ("ct", mark.CLASS, mark.DIRECT)
    lacks = (("ct mark", mark.CLASS, mark.DIRECT),)
    assert probe.dropping([chain("gateway_base", "forward"), chain("a", "forward", "accept")]) == []
    assert probe.dropping([chain("a", "forward", family="bridge"), chain("a", "postrouting")]) == []
    assert probe.dropping([chain("a", "forward")]) == [("inet", "a", "forward", lacks)]
    assert probe.dropping([chain("a", "forward"), accept("a", "forward", *forward)]) == []
    for other in (accept("b", "forward", *forward), accept("a", "forward", "meta", *forward[1:]),
                  accept("a", "forward", *forward, {"counter": None}), accept("a", "forward", "ct", 1, 1)):  # fmt: skip
        assert probe.dropping([chain("a", "forward"), other]) == [("inet", "a", "forward", lacks)]
    found = probe.dropping([chain("a", "input"), accept("a", "input", "meta", mark.ROUTE, mark.ROUTE)])
    assert found == [("inet", "a", "input", (("ct mark", mark.CLASS, mark.NAMES),))]


def test_every_finding_has_a_name_and_a_way_out() -> None:
    findings = probe.probe()
    names = [finding.name for finding in findings]
    assert len(names) == len(set(names))
    assert {"CAP_NET_ADMIN", "nft", "cgroup2", "btf", "conntrack", "rp-filter", "dnsmasq"} <= set(names)
    for finding in findings:
        assert finding.ok or finding.detail


def test_cgroup2_in_a_mount_table(tmp_path) -> None:
    table = tmp_path / "mounts"
    table.write_text("cgroup /sys/fs/cgroup/pids cgroup rw 0 0\ncgroup2 /sys/fs/my\\040group cgroup2 rw 0 0\n")
    assert str(cgroup.mount_point(table)) == "/sys/fs/my group"


@pytest.mark.root
def test_dry_runs_tell_a_refusal_from_our_own_grammar() -> None:
    """A syntax error in what we ask would look like a missing feature."""
    findings = {finding.name: finding for finding in probe.probe()}
    for name in ("nft", "nft-tproxy", "nft-socket", "nft-fib", "nft-ct", "nft-redirect", "nft-masquerade", "nft-owner"):
        assert findings[name].ok, findings[name]
    for name in ("bpf-process", "flow-offload"):
        assert findings[name].ok, findings[name]
