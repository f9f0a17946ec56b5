"""The demo's checks of others on the way: a neighbour's marks and ip rule on the router, a second router in the LAN."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from gateway.config.text import parse
from gateway.kernel import mark
from gateway.lab.forecast import CheckError, expect
from gateway.lab.observe import NOBODY, addresses6, icmp, page, ping, proxied, tracked_mark, udp, visit
from gateway.lab.scenario import home
from gateway.lab.stage import EXAMPLES, Stage

MASK, MARK = 0xFF3F00, 0x040100
"""Bits of mwan3 and of Tailscale, and what a neighbour that has both puts there."""
TABLE = 77
"""Its routing table, which leads out through a second cable."""
CARRIED = {mark.USER, mark.SNIFF}
DIALLED = 62
"""TTL that is left of inner's 64 after router and isp; of the guest's it would be one less."""
RULESET = """
table inet neighbour {{
	counter lost {{ }}
	counter forwarded {{ }}
	counter delivered {{ }}
	counter second4 {{ }}
	counter second6 {{ }}

	chain marks {{
		type filter hook prerouting priority {priority}; policy accept;
		iifname "lan" meta mark set {packet}
		iifname "lan" ct state new ct mark set ct mark & {rest:#010x} | {value:#x}
	}}

	chain passing {{
		type filter hook forward priority 0; policy accept;
		iifname "lan" meta l4proto {{ tcp, udp }} counter name forwarded jump judge
	}}

	chain arriving {{
		type filter hook input priority 0; policy accept;
		fib daddr type {{ local, multicast }} return
		iifname "lan" meta l4proto {{ tcp, udp }} counter name delivered jump judge
	}}

	chain judge {{
		meta mark & {mask:#x} != {value:#x} counter name lost
		ct mark & {mask:#x} != {value:#x} counter name lost
	}}

	chain leaving {{
		type nat hook postrouting priority srcnat - 10; policy accept;
		oifname "wan2" meta nfproto ipv6 counter name second6
		oifname "wan2" meta nfproto ipv4 counter name second4 masquerade
	}}
}}
"""


def foreign_marks_kept(stage: Stage) -> str:
    """A neighbour marks packets and connections of the LAN in bits of its own and routes by them. What is direct leaves
    as its ip rule says, what is proxied comes in all the same, and its bits are there afterwards."""
    near, far, echo = stage.home.sites[0], stage.home.sites[2], stage.home.sites[3]
    with neighbour(stage):
        for family in (4, 6):
            here, there, other = ((site.ipv4, site.ipv6)[family == 6] for site in (near, far, echo))
            wanted = [home.SECOND[0]] if family == 4 else addresses6(stage, "lan1")
            for seen in (stage.fetch("lan1", page(here)), udp(stage, "lan1", here) or NOBODY):
                expect(seen["client"][0] in wanted, f"{near.host} saw {seen['client'][0]}, not {wanted}")
            proxied(stage, far, visit(stage, "lan1", far, far.names[0], family))
            proxied(stage, echo, udp(stage, "lan1", other) or NOBODY)
            for address, classes in ((here, {mark.DIRECT}), (there, CARRIED), (other, CARRIED)):
                rows = stage.conntrack("-f", f"ipv{family}", "--orig-dst", address)
                found = {tracked_mark(row) for row in rows}
                expect(found & {MARK | kind for kind in classes}, f"connections to {address} have {sorted(found)}")
        names = ("forwarded", "delivered", "second4", "second6", "lost")
        counts = {name: stage.counted(name, "neighbour") for name in names}
        expect(all(counts[name] for name in names[:-1]), f"the neighbour has not seen all: {counts}")
        expect(not counts["lost"], f"without the neighbour's marks: {counts}")
    return (
        f"{counts['forwarded']} packets forwarded, {counts['delivered']} to userspace, all with the neighbour's mark "
        f"{MARK:#x}; direct ones left by its ip rule: {near.host} saw {home.SECOND[0]}"
    )


@contextlib.contextmanager
def neighbour(stage: Stage) -> Iterator[None]:
    """Its second cable, table and ip rules; all of it goes afterwards."""
    router, rest = stage.lab.host("router"), 0xFFFFFFFF & ~MASK
    # Before our chain it does no harm to write the whole mark; after it our bit is lost.
    whole = "whole-marks" in stage.sabotages
    packet = f"{MARK:#x}" if whole else f"meta mark & {rest:#010x} | {MARK:#x}"
    rules = RULESET.format(priority="mangle" if whole else "-170", packet=packet, rest=rest, value=MARK, mask=MASK)
    stage.lab.connect(home.second_link(stage.home))
    lines = [
        f"addr add {home.SECOND[0]}/31 dev wan2",
        f"addr add {stage.home.second6[0]}/64 dev wan2 nodad",
        f"route add default via {home.SECOND[1]} dev wan2 table {TABLE}",
        f"-6 route add default via {stage.home.second6[1]} dev wan2 table {TABLE}",
    ]
    rule = f"rule %s priority 5000 fwmark {MARK & 0x3F00:#x}/0x3f00 lookup {TABLE}"
    try:
        # Answers come in where the main table would not look for them.
        router.run(["sysctl", "-qw", "net/ipv4/conf/wan2/rp_filter=2"], check=True)
        for line in (*lines, rule % "add", "-6 " + rule % "add"):
            router.run(["ip", *line.split()], check=True)
        router.run(["nft", "-f", "-"], stdin=rules.encode(), check=True)
        yield
    finally:
        router.run(["nft", "delete", "table", "inet", "neighbour"])
        for line in (rule % "del", "-6 " + rule % "del"):
            router.run(["ip", *line.split()])
        stage.lab.disconnect("router", "wan2")


def tun_lan_wide(stage: Stage) -> str:
    """Behind a second router, whose gateway has a tun inbound and no ``gateway`` object: nobody else knows the guest's
    network, so all that comes back was dialled by that gateway in its own name."""
    site, inner = stage.home.sites[0], stage.home.inner
    if stage.gateway is None:
        raise CheckError("no gateway runs")
    value = parse((EXAMPLES / "tun.json").read_text(), "tun.json")
    if "no-auto-route" in stage.sabotages:
        value["inbounds"][0] |= {"auto_route": False, "auto_redirect": False}
    path = stage.lab.folder / "tun.json"
    path.write_text(json.dumps(value))
    process = stage.launch("inner", [path], stage.instance + "-inner")
    try:
        for address, client in ((site.ipv4, stage.wan4), (site.ipv6, inner.ipv6)):
            seen = {"TCP": stage.fetch("guest", page(address)), "UDP": udp(stage, "guest", address) or NOBODY}
            for kind, one in seen.items():
                expect(one["client"][0] == client, f"{kind}: {site.host} saw {one['client'][0]}, not {client}")
                expect(one["ttl"] == DIALLED, f"{kind}: TTL {one['ttl']}, not {DIALLED}: not dialled by inner")
            before = icmp(stage, site.host, "Echos")
            expect(ping(stage, "guest", address), f"no echo from {address}")
            expect(icmp(stage, site.host, "Echos") > before, f"somebody answered for {address}")
    finally:
        result = process.stop()
    expect(result.ok, f"inner: exit {result.code}: {result.err[-300:]}")
    return f"TCP, UDP and ping of guest, IPv4 and IPv6: {site.host} saw {stage.wan4} and {inner.ipv6}, inner's own"
