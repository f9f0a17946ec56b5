"""SIGHUP with other rules, outbounds, inbounds and DNS: who goes on, who moves, and what a refused file leaves."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.cli.lab import programs
from gateway.kernel import mark
from gateway.lab.client import udp as udp_client
from gateway.lab.observe import http3, opened, talk, tracked_mark
from gateway.lab.stage import GROUP_TAG, CheckError, Stage, poll

pytestmark = [pytest.mark.root, pytest.mark.timeout(240), pytest.mark.xdist_group("reload")]
SOCKS = 1080


class Turned(Stage):
    """A stage whose sing-box file tests rewrite."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.value: dict[str, Any] = {}

    def rules(self) -> dict[str, Any]:
        self.value = self.value or super().rules()
        return self.value

    def apply(self) -> None:
        assert "configuration applied" in (line := self.hangup()), line

    def see(self, sock: socket.socket, address: str) -> str:
        """Which way a datagram to the site's echo goes; "" where nothing comes back."""
        answer = udp_client.exchange(sock, (address, 7), "ping", 1.0)
        return self.way(answer["client"][0]) if answer else ""


@pytest.fixture(scope="module")
def stage() -> Iterator[Turned]:
    turned = Turned(programs(), random.randrange(1 << 32))
    with turned.lab:
        turned.start()
        turned.plug()
        poll(turned.lease, "no lease")
        turned.wan4 = turned.lease()
        yield turned


@pytest.fixture(autouse=True)
def fresh(stage: Turned) -> None:
    """Each test begins with the example's rules."""
    stage.value = {}
    stage.apply()


def site_rules(stage: Turned, outbound: str, number: int = 1) -> None:
    """All of a site goes to ``outbound``, above whatever the rules said."""
    site = stage.home.sites[number]
    rules = [rule for rule in stage.rules()["route"]["rules"] if rule.get("outbound") not in ("direct", GROUP_TAG)]
    stage.value["route"]["rules"] = [{"ip_cidr": [site.ipv4, site.ipv6], "outbound": outbound}, *rules]


def ssh(stage: Turned, address: str) -> Any:
    return opened(stage, "lan1", address, 22, socket.AF_INET6 if ":" in address else socket.AF_INET)


def greeted(stage: Turned, sock: socket.socket) -> str:
    """Which way a connection went, by the server's greeting."""
    return stage.way(sock.recv(200).decode().split()[1])


@pytest.mark.parametrize("family", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_flows_go_on_whose_verdict_is_the_same(stage: Turned, family: int) -> None:
    one, two = stage.home.sites[1], stage.home.sites[2]
    first, second = (one.ipv4, two.ipv4) if family == 4 else (one.ipv6, two.ipv6)
    site_rules(stage, "proxy")
    stage.apply()
    with ssh(stage, first) as proxied, ssh(stage, second) as direct:
        assert (greeted(stage, proxied), greeted(stage, direct)) == ("proxy", "direct")
        stage.value["route"]["rules"].insert(0, {"port": 9999, "outbound": "proxy"})
        stage.value["dns"]["strategy"] = "prefer_ipv4"
        stage.value["inbounds"] = [{"type": "mixed", "tag": "in", "listen": "127.0.0.1", "listen_port": SOCKS}]
        stage.apply()
        talk(proxied, "still proxied")
        talk(direct, "still direct")


@pytest.mark.slow
@pytest.mark.parametrize("family", [4, 6])
def test_flows_move_whose_verdict_changed(stage: Turned, family: int) -> None:
    site = stage.home.sites[1]
    address = site.ipv4 if family == 4 else site.ipv6
    site_rules(stage, "proxy")
    stage.apply()
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with ssh(stage, address) as sock, stage.lab.host("lan1").socket(kind, socket.SOCK_DGRAM) as datagrams:
        assert greeted(stage, sock) == "proxy"
        assert stage.see(datagrams, address) == "proxy"
        site_rules(stage, "direct")
        stage.value["route"]["rules"] = [
            rule for rule in stage.value["route"]["rules"] if rule.get("network") != "udp"
        ]  # the example's own rule for the echo service
        stage.apply()
        with pytest.raises((CheckError, AssertionError)):
            talk(sock, "gone")
        # The same socket, the same port: the kernel's from now on.
        assert poll(lambda: stage.see(datagrams, address), "the UDP socket stays dead") == "direct"
        with ssh(stage, address) as again:
            assert greeted(stage, again) == "direct"


def test_a_new_flow_goes_by_the_new_rules_at_once(stage: Turned) -> None:
    site = stage.home.sites[0]
    with ssh(stage, site.ipv4) as sock:
        assert greeted(stage, sock) == "direct"
        site_rules(stage, "proxy", 0)
        stage.apply()
        talk(sock, "a running flow is never seized")
        with ssh(stage, site.ipv4) as again:
            assert greeted(stage, again) == "proxy"


def test_an_outbound_that_changed_ends_its_flows_alone(stage: Turned) -> None:
    site = stage.home.sites[1]
    site_rules(stage, "proxy")
    stage.apply()
    with ssh(stage, site.ipv4) as proxied, ssh(stage, stage.home.sites[0].ipv4) as direct:
        assert greeted(stage, proxied) == "proxy"
        greeted(stage, direct)
        stage.value["outbounds"][1]["connect_timeout"] = "4s"
        stage.apply()
        with pytest.raises((CheckError, AssertionError)):
            talk(proxied, "gone")
        talk(direct, "still direct")
        with ssh(stage, site.ipv4) as again:
            assert greeted(stage, again) == "proxy"


def test_names_that_were_learned_stay_learned(stage: Turned) -> None:
    near, far = stage.home.sites[1], stage.home.sites[2]
    for site in (near, far):
        out = stage.lab.host("lan1").run(["dig", "+short", site.names[0]]).out.strip()
        assert out == site.ipv4
    stage.value["route"]["rules"].append({"domain": [near.names[0]], "outbound": "proxy"})
    stage.apply()
    assert str(stage.predict(near.ipv4, source="lan1", port=22)).startswith("userspace proxy")
    with ssh(stage, near.ipv4) as sock, ssh(stage, far.ipv4) as other:
        assert greeted(stage, sock) == "proxy", "the name is known, its verdict new"
        assert greeted(stage, other) == "proxy"


@pytest.mark.slow
def test_names_are_forgotten_where_none_are_learned_any_more(stage: Turned) -> None:
    site = stage.home.sites[1]
    ask = ["dig", "+short", site.names[0]]

    def known() -> bool:
        return bool(json.loads(stage.command("status", "--json").out)["names"]["addresses"]["now"])

    try:
        assert stage.lab.host("lan1").run(ask).out.strip() == site.ipv4
        assert known()
        stage.changes["learn"] = False
        stage.apply()
        assert not known()
        assert stage.lab.host("lan1").run(ask).out.strip() == site.ipv4
        assert not known()
        with ssh(stage, site.ipv4) as sock:
            assert greeted(stage, sock)
    finally:
        stage.changes.pop("learn", None)
        stage.apply()
    assert not known(), "what was said meanwhile was heard by nobody"
    assert stage.lab.host("lan1").run(ask).out.strip() == site.ipv4
    assert known()


def test_inbounds_come_and_go(stage: Turned) -> None:
    router, site = stage.lab.host("router"), stage.home.sites[0]

    def through(port: int) -> bool:
        words = ["curl", "-s", "-m", "3", "--socks5", f"127.0.0.1:{port}", f"http://{site.ipv4}/"]
        return bool(router.run(words).ok)

    entry = {"type": "mixed", "tag": "in", "listen": "127.0.0.1", "listen_port": SOCKS}
    stage.rules()["inbounds"] = [entry]
    stage.apply()
    assert through(SOCKS)
    entry["listen_port"] = SOCKS + 1
    stage.apply()
    assert through(SOCKS + 1)
    assert not through(SOCKS)
    stage.value["inbounds"] = []
    stage.apply()
    assert not through(SOCKS + 1)


def test_what_is_refused_changes_nothing(stage: Turned) -> None:
    site = stage.home.sites[1]
    site_rules(stage, "proxy")
    stage.value["inbounds"] = [{"type": "socks", "tag": "in", "listen": "127.0.0.1", "listen_port": SOCKS}]
    stage.apply()
    stage.changes["forwards"] = []
    good = json.loads(json.dumps(stage.value))
    rules = stage.lab.host("router").run(["nft", "list", "ruleset"]).out
    with ssh(stage, site.ipv4) as sock, stage.lab.host("router").socket(socket.AF_INET) as taken:
        assert greeted(stage, sock) == "proxy"
        taken.bind(("127.0.0.1", SOCKS + 5))
        taken.listen()
        stage.value["inbounds"][0]["listen_port"] = SOCKS + 5
        site_rules(stage, "direct")
        assert "configuration kept" in (line := stage.hangup())
        assert "in use" in line
        stage.value = {**good, "outbounds": []}
        assert "configuration kept" in stage.hangup()
        talk(sock, "nothing happened")
        with ssh(stage, site.ipv4) as again:
            assert greeted(stage, again) == "proxy"
    router = stage.lab.host("router")
    assert router.run(["nft", "list", "ruleset"]).out.count("\n") == rules.count("\n")
    assert router.run(["curl", "-s", "-m", "3", "--socks5", f"127.0.0.1:{SOCKS}", f"http://{site.ipv4}/"]).ok
    stage.changes.clear()
    stage.value = good
    stage.apply()


@pytest.mark.parametrize("family", [4, 6])
def test_t12_quic_that_a_sniff_found_direct_goes_back_to_the_kernel(stage: Turned, family: int) -> None:
    site = stage.home.sites[5]
    name = site.names[1]  # nobody resolved it, so that only the sniffer can know
    address = site.ipv4 if family == 4 else site.ipv6
    seen = http3(stage, "lan2", name, address)
    assert stage.gateway is not None
    assert (
        stage.gateway.err.read_text().count(f"{address}:443 to the kernel" if family == 4 else f"[{address}]:443 to")
        == 1
    )
    client = seen["client"][0]
    assert stage.way(client) == "direct"
    rows = [
        row for row in stage.conntrack("-f", f"ipv{family}", "-p", "udp", "--orig-dst", address) if "dport=443" in row
    ]
    assert len(rows) == 1, rows
    source = stage.home.lan2.ipv4 if family == 4 else client
    assert f"src={source}" in rows[0], "the client's own flow, not one of the router's"
    assert tracked_mark(rows[0]) & mark.CLASS == mark.DIRECT, "and one that outlives us under every policy"


def test_status_tells_what_the_kernel_refuses_and_a_reload_mends_it(stage: Turned) -> None:
    site = stage.home.sites[0]
    router = stage.lab.host("router")

    def tool_goes() -> str:
        return stage.way(stage.fetch("router", f"http://{site.ipv4}/", curl=str(stage.tool))["client"][0])

    try:
        stage.changes["kernel"] = {"cgroup": "/nonexistent"}
        stage.apply()
        said = stage.command("status").out
        assert "running, up" in said
        assert "steering: the kernel steers" in said
        assert "process rules: open cgroup /nonexistent" in said
        assert tool_goes() == "proxy", "without the programs userspace asks whose flow it is"
    finally:
        stage.changes["kernel"] = {"cgroup": str(router.group)}
        stage.apply()
    assert "process rules" not in stage.command("status").out
    assert tool_goes() == "proxy"
    del stage.changes["kernel"]
