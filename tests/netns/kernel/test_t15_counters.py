"""What is listed and added up is what has passed: long way, short way and userspace, in both families.

Conntrack counts whole packets; what the server has received is their payload. All segments have the same headers here:
20 or 40 bytes of IP, 20 of TCP, 12 of its timestamps.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from gateway.kernel import conntrack, mark
from gateway.kernel.shape import counted
from gateway.lab.lab import Lab
from gateway.lab.stage import poll

from .test_offload import CLIENT4, CLIENT6, SERVER4, SERVER6, SERVERS, SIZE, TOPOLOGY, WAN4, WAN6, pump
from .test_offload import Way as Offloading
from .whole import ROOT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t15")]
DIRECT, SNIFFED, FORWARDED = 7001, 7002, 7003
HEADERS = {4: 52, 6: 72}
HELLO = b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n"
SHORT = 200
"""Short flows."""
RULES = [
    {"protocol": "dns", "action": "hijack-dns"},
    {"action": "sniff"},
    {"port": SNIFFED, "domain": "never.example", "action": "reject"},
]


class Way(Offloading):
    def configure(self, offload: str = "auto") -> None:
        self.path.write_text(json.dumps({
            "outbounds": [{"type": "direct", "tag": "direct"}],
            "route": {"rules": RULES, "find_process": True, "find_neighbor": True},
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {
                    "address": [f"{WAN4}/24", f"{WAN6}/64"], "gateway": [SERVER4, SERVER6]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
                "forwards": [{"port": FORWARDED, "to": CLIENT6}],
                "kernel": {"cgroup": str(self.gateway.group), "offload": offload},
            },
        }))  # fmt: skip

    def flows(self, *words: str) -> list[dict[str, Any]]:
        done = self.command("flows", "--json", "--interval", "0", *words)
        assert done.ok, done.err
        found: list[dict[str, Any]] = done.json()["flows"]
        return found

    def totals(self, by: str) -> dict[str, dict[str, Any]]:
        done = self.command("flows", "--json", "--by", by)
        assert done.ok, done.err
        return {one["name"]: one for one in done.json()["totals"]}

    def mac(self) -> str:
        return str(self.client.run(["ip", "-j", "link", "show", "eth0"], check=True).json()[0]["address"])


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Way(lab)) as way:
        yield way


def opened(way: Way, family: int, port: int) -> tuple[socket.socket, socket.socket]:
    """A connection from the client to the server, whoever carries it."""
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with closing(way.server.socket(kind)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVERS[family], port))
        listener.listen()
        listener.settimeout(20)
        near = way.client.socket(kind)
        near.settimeout(20)
        near.connect((SERVERS[family], port))
        near.sendall(HELLO)
        far, _ = listener.accept()
    far.settimeout(20)
    assert far.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
    return near, far


def sent(sock: socket.socket) -> int:
    """Payload bytes, as often as they were sent: tcpi_bytes_sent of struct tcp_info."""
    return int.from_bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)[200:208], sys.byteorder)


def payload(flow: dict[str, Any], family: int) -> tuple[int, int]:
    """Up and down, as its ends see it."""
    if flow["plane"] == "userspace":
        return flow["up"], flow["down"]
    headers = HEADERS[family]
    return flow["up"] - headers * flow["packets_up"], flow["down"] - headers * flow["packets_down"]


@pytest.mark.parametrize("family", [4, 6])
def test_t15_sums(way: Way, family: int, figure: Any) -> None:
    way.wake()
    before = {by: way.totals(by) for by in ("device", "outbound", "class")}
    with ExitStack() as stack:
        ends = []
        for port in (DIRECT, SNIFFED):
            near, far = opened(way, family, port)
            stack.enter_context(near)
            stack.enter_context(far)
            ends.append((near, far))
        for turn in range(2):
            if turn:
                time.sleep(1.2)  # a flow takes the long way again after a second: it is learned anew
            for near, far in ends:
                pump(near, far)
                pump(far, near)
        up, down = 2 * SIZE + len(HELLO), 2 * SIZE
        found = {flow["plane"]: flow for port in (DIRECT, SNIFFED) for flow in way.flows(
            "--filter", f"{SERVERS[family] if family == 4 else f'[{SERVER6}]'}:{port}")}  # fmt: skip
        kernel, userspace = found["kernel"], found["userspace"]
        assert payload(userspace, family) == (up, down)
        sums = [payload(flow, family) for flow in found.values()]
        # What TCP sent twice has passed twice.
        again = [sent(sock) - size for sock, size in zip(ends[0], (up, down), strict=True)]
        for at, size in enumerate((up, down)):
            wanted = 2 * size + again[at]
            assert abs(sum(one[at] for one in sums) - wanted) <= wanted / 100
        assert kernel["rule"] == userspace["rule"] == -1
        # The short way had some of it: conntrack alone does not know.
        (seen,) = [
            one
            for one in way.gateway.call(lambda: list(counted(mark.DIRECT, mark.CLASS)))
            if f"{one.entry.source}" == kernel["source"]
        ]
        assert seen.up is not None
        assert seen.up.bytes < 0.9 * kernel["up"]
        whole, seen_down = kernel["up"] + kernel["down"], seen.down.bytes if seen.down is not None else 0
        figure(
            f"IPv{family}: {2 * (up + down)} bytes received, {sum(again)} sent again, {sum(map(sum, sums))} counted; "
            f"of the kernel's {whole} conntrack saw {seen.up.bytes + seen_down}"
        )
        # Nothing moves now: what is added up is what is listed.
        after = {by: way.totals(by) for by in before}
    rows = kernel["up"] + kernel["down"] + userspace["up"] + userspace["down"]
    device = way.mac()
    assert grown(before, after, "device", device, "bytes") == rows
    assert grown(before, after, "device", device, "flows") == 2
    assert grown(before, after, "outbound", "direct", "bytes") == rows
    assert grown(before, after, "outbound", "direct", "up") == kernel["up"] + userspace["up"]
    assert grown(before, after, "class", "user", "bytes") == userspace["up"] + userspace["down"]
    direct = grown(before, after, "class", "direct", "bytes")
    assert abs(direct - kernel["up"] - kernel["down"]) <= direct / 100


def test_t15_what_has_no_class_is_of_none(way: Way) -> None:
    """A port forward, which nothing steers, takes the short way too."""
    way.wake()
    with ExitStack() as stack:
        with closing(way.client.socket(socket.AF_INET6)) as listener:
            listener.bind((CLIENT6, FORWARDED))
            listener.listen()
            listener.settimeout(20)
            near = stack.enter_context(closing(way.server.socket(socket.AF_INET6)))
            near.settimeout(20)
            near.connect((CLIENT6, FORWARDED))
            far, _ = listener.accept()
        stack.enter_context(far).settimeout(20)
        before = way.totals("class")["direct"]["bytes"]
        size = tracked = 0
        while tracked >= 0.9 * size:  # some of it goes the long way first
            assert size < 10 * SIZE, "none of it went the short way"
            pump(near, far)
            size += SIZE
            listed = way.gateway.call(lambda: list(counted(0, mark.CLASS)))
            (tracked,) = [
                one.up.bytes for one in listed if one.entry.destination.port == FORWARDED and one.up is not None
            ]
        assert way.totals("class")["direct"]["bytes"] - before < SIZE / 100


def grown(before: dict[str, Any], after: dict[str, Any], by: str, name: str, field: str) -> int:
    return int(after[by][name][field] - before[by].get(name, {field: 0})[field])


@pytest.mark.parametrize("family", [4, 6])
def test_t15_flows_that_end_between_looks(way: Way, family: int) -> None:
    """They are gone from conntrack before anybody looks again, and some begin before the first look."""
    device, kind = way.mac(), {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with closing(way.server.socket(kind, socket.SOCK_DGRAM)) as server:
        server.bind((SERVERS[family], 7007))
        server.settimeout(10)

        def ask(size: int, first: int) -> None:
            for number in range(SHORT):
                with closing(way.client.socket(kind, socket.SOCK_DGRAM)) as client:
                    client.bind(("", first + number))
                    client.sendto(bytes(size), (SERVERS[family], 7007))
                    assert len(server.recv(2000)) == size

        way.gateway.call(lambda: conntrack.delete_marked(mark.DIRECT, mark.CLASS))
        ask(100, 20000)
        before = way.totals("device")[device]
        looks = way.status()["looks"]
        watching = way.gateway.popen(
            [sys.executable, "-m", "gateway", "flows", "--json", "--interval", "5", "--instance", way.instance],
            cwd=ROOT,
        )
        poll(lambda: way.status()["looks"] == looks + 1, watching.told(), 10)
        ask(1000, 21000)
        way.gateway.call(lambda: conntrack.delete_marked(mark.DIRECT, mark.CLASS))
        watching.wait(20)
        assert not [flow for flow in json.loads(watching.out.read_text())["flows"] if ":7007" in flow["destination"]]
        after = way.totals("device")[device]
    headers = {4: 28, 6: 48}[family]
    assert after["flows"] - before["flows"] == SHORT
    assert after["up"] - before["up"] == SHORT * (1000 + headers)
    assert (CLIENT4, CLIENT6)[family == 6] not in way.totals("device")


@pytest.mark.parametrize("family", [4, 6])
def test_t15_the_short_way_of_a_flow_that_ends_between_looks(way: Way, family: int) -> None:
    looks = way.status()["looks"]
    watching = way.gateway.popen(
        [sys.executable, "-m", "gateway", "flows", "--json", "--interval", "10", "--instance", way.instance], cwd=ROOT
    )
    poll(lambda: way.status()["looks"] == looks + 1, watching.told(), 10)
    way.wake()
    before, size, tracked = way.totals("device")[way.mac()]["up"], 0, 0
    near, far = opened(way, family, DIRECT)
    port = near.getsockname()[1]
    with near, far:
        while tracked >= 0.9 * size:  # some of it goes the long way first
            assert watching.running, "none of it went the short way"
            pump(near, far)
            size += SIZE
            entries = way.gateway.call(lambda: list(counted(mark.DIRECT, mark.CLASS)))
            (tracked,) = [one.up.bytes for one in entries if one.entry.source.port == port and one.up is not None]
        size = sent(near)
        way.gateway.call(lambda: conntrack.delete_marked(mark.DIRECT, mark.CLASS))
        assert watching.running, "still watched"
    watching.wait(20)
    assert size < way.totals("device")[way.mac()]["up"] - before < 1.1 * size


def test_t15_a_flow_of_the_router_counts_for_its_program(way: Way) -> None:
    before = way.totals("process")
    with closing(way.server.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER4, 7008))
        listener.listen()
        listener.settimeout(20)
        line = f"exec 3<>/dev/tcp/{SERVER4}/7008; head -c 100000 /dev/zero >&3; sleep 60; true"
        running = way.gateway.popen(["bash", "-c", line])
        try:
            far, _ = listener.accept()
            with far:
                far.settimeout(20)
                left = 100_000
                while left:
                    left -= len(far.recv(left))
                path = os.path.realpath(f"/proc/{running.pid}/exe")
                after = way.totals("process")[path]
        finally:
            running.kill()
    assert path not in before
    assert after["flows"] == 1
    assert 100_000 < after["up"] < 110_000
