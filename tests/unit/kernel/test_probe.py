"""What the probe makes of other people's rules, and that it looks without touching."""

from __future__ import annotations

import pytest

from gateway.kernel import cgroup, mark, probe
from gateway.kernel.probe import marks


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
    assert marks.overlaps(rule) is expected


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
