"""Reading everybody's tables, from an nft that breaks off the list of one that has a flag (as 1.0.6 may)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.kernel import probe
from gateway.kernel.probe import ruleset

NFT = """#!/bin/sh
case "$*" in
"-t list ruleset") cat <<'END'
# Warning: table ip filter is managed by iptables-nft, do not touch!
table ip filter {
\tset named {
\t\ttype ipv4_addr
\t\tflags interval
\t}
}
table inet fw { # progname firewalld
\tflags owner,persist
}
table inet gateway { # progname python
\tflags owner
\tchain deliver {
\t\tmeta l4proto { tcp, udp } tproxy to :7893 meta mark set meta mark | 0x01000000 accept
\t}
\tchain capture {
\t\tmeta l4proto { tcp, udp } ct mark set ct mark & 0xf8ffffff | 0x05000000 redirect to :5353
\t}
}
table inet gateway_tun_0 { # progname python
\tflags owner
\tchain deliver {
\t\tmeta nfproto ipv6 meta l4proto { tcp, udp } tproxy ip6 to [::1]:4711 accept
\t}
}
END
;;
"-j -t list table ip filter") echo '{"nftables": [{"chain": {"family": "ip", "table": "filter", "name": "INPUT"}}]}';;
"-j -t list table inet fw") printf '{"nftables": [{"table": {"family": "inet", "name": "fw", "flags": \\n';;
*) echo "nobody should ask: $*" >&2; exit 1;;
esac
"""


@pytest.fixture
def nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nft"
    program.write_text(NFT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_one_table_that_cannot_be_read_hides_no_other(nft: None) -> None:
    found = ruleset.read()
    assert {table: entry["flags"] for table, entry in found.tables.items()} == {
        ("ip", "filter"): [], ("inet", "fw"): ["owner", "persist"], ("inet", "gateway"): ["owner"],
        ("inet", "gateway_tun_0"): ["owner"],
    }  # fmt: skip
    assert list(found.chains) == [("ip", "filter", "INPUT")]
    assert found.unread == [("inet", "fw")]
    assert found.ports == {7893, 5353, 4711}
    assert ruleset.standing() == ["inet gateway", "inet gateway_tun_0"]
    (said,) = [finding for finding in probe.conflicts() if finding.name == "rules"]
    assert said.detail.startswith("table inet fw: ")
    assert not said.ok
