"""A listing beside 50,000 tracked flows, of others and of ours; and that nobody reads them where nobody looks."""

from __future__ import annotations

import json
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.core.address import Address
from gateway.kernel import conntrack, mark
from gateway.kernel.ended import Ended
from gateway.kernel.nft.message import ACK, CREATE, NETLINK_NETFILTER, REQUEST, answers, attribute, message, nested, u32
from gateway.lab.lab import Lab
from gateway.lab.stage import poll
from gateway.service.control import ask

from .test_flows import TOPOLOGY, WAN
from .whole import Whole

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("t16")]
ENTRIES = 50_000
EXCLUSIVE = 0x200
CHUNK = 200
TICK = os.sysconf("SC_CLK_TCK")


def entry(number: int, value: int) -> bytes:
    """An assured UDP flow of a client of the LAN, IPv4 and IPv6 in turn."""
    port = struct.pack("!H", 1024 + number % 50_000)

    def ends(kind: int, *hosts: bytes) -> bytes:
        first = 1 if len(hosts[0]) == 4 else 3
        ports = (port, struct.pack("!H", 443)) if kind == conntrack.ORIGINAL else (struct.pack("!H", 443), port)
        addresses = nested(1, *(attribute(first + at, host) for at, host in enumerate(hosts)))
        there = (attribute(2 + at, one) for at, one in enumerate(ports))
        return nested(kind, addresses, nested(2, attribute(1, b"\x11"), *there))

    six = number % 2
    texts = (f"2001:db8:1::{number % 200 + 10:x}", "2001:db8:3::9") if six else (f"192.168.7.{number % 200 + 10}",
                                                                                   "198.51.100.9")  # fmt: skip
    client, site = (socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, text) for text in texts)
    body = ends(conntrack.ORIGINAL, client, site) + ends(conntrack.REPLY, site, client)
    body += u32(conntrack.TIMEOUT, 600) + u32(conntrack.STATUS, 0x0E) + (u32(conntrack.MARK, value) if value else b"")
    flags = REQUEST | CREATE | EXCLUSIVE | (ACK if number % CHUNK == CHUNK - 1 else 0)
    return message(conntrack.NEW, flags, number + 1, socket.AF_INET6 if six else socket.AF_INET, body)


def fill(value: int) -> None:
    """In the namespace of the caller."""
    with closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)) as sock:
        sock.bind((0, 0))
        sock.settimeout(30)
        for start in range(0, ENTRIES, CHUNK):
            sock.send(b"".join(entry(number, value) for number in range(start, start + CHUNK)))
            (answer,) = answers(sock.recv(1 << 16))
            assert answer.errno == 0


class Way(Whole):
    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.path.write_text(json.dumps({
            "outbounds": [{"type": "direct", "tag": "direct"}],
            "gateway": {
                "uplinks": [{"interface": "wan0", "static": {"address": [f"{WAN}/24"], "gateway": ["203.0.113.2"]}}],
                "lans": [{"interface": "lan0", "address": ["192.168.7.1/24", "2001:db8:1::1/64"]}],
                "kernel": {"cgroup": str(self.gateway.group)},
            },
        }))  # fmt: skip
        self.start()
        poll(lambda: self.status().get("state") == "running", self.process.told(), 30)
        self.folder = Path("/run/gateway", self.instance)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The control socket has no network namespace."""
        found = ask(self.folder, request)
        assert found.pop("ok"), found
        return found

    def spent(self) -> float:
        """CPU seconds of the gateway's process."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def listed(self) -> tuple[int, float, float]:
        """How many flows, in seconds of the clock and of the processor."""
        before, spent = time.monotonic(), self.spent()
        found = self.ask(command="flows", sort="bytes")
        return len(found["flows"]) + found["left_out"], time.monotonic() - before, self.spent() - spent

    def waits(self, work: Callable[[], Any]) -> list[float]:
        """Seconds that others wait for an answer of the gateway, one after the other, while ``work`` is done."""
        found: list[float] = []
        with ThreadPoolExecutor(1) as pool:
            done = pool.submit(work)
            while not done.done():
                before = time.monotonic()
                self.ask(command="status")
                found.append(time.monotonic() - before)
            done.result()
        return found


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Way(lab)) as way:
        yield way


def said(runs: list[tuple[int, float, float]]) -> str:
    return ", ".join(f"{seconds * 1000:.0f} ms ({cpu * 1000:.0f} of the processor)" for _, seconds, cpu in runs)


def test_t16_entries_of_others_are_not_read(way: Way, figure: Any) -> None:
    way.gateway.call(lambda: fill(0))
    try:
        assert way.gateway.call(lambda: len(conntrack.dump())) >= ENTRIES
        runs = [way.listed() for _ in range(5)]
        assert all(count < 100 for count, _, _ in runs)
        figure(f"beside {ENTRIES} entries of others: {said(runs)}; load {os.getloadavg()[0]:.0f}")
        # The kernel passes them over: parsing them took a second of the processor.
        assert min(cpu for _, _, cpu in runs) < 0.2
    finally:
        way.gateway.run(["conntrack", "-F"])


def test_t16_of_ours_all_count_and_nobody_waits(way: Way, figure: Any) -> None:
    """And none is read where nobody looks."""
    way.gateway.call(lambda: fill(mark.DIRECT))
    try:
        first = way.ask(command="status")["looks"]
        runs = [way.listed() for _ in range(3)]
        assert [count for count, _, _ in runs] == [ENTRIES] * 3
        assert way.ask(command="status")["looks"] == first + 3
        waits = way.waits(way.listed)
        figure(f"while they are listed {len(waits)} others ask: {statistics.median(waits) * 1000:.1f} ms to an answer, "
               f"{max(waits) * 1000:.0f} at most")  # fmt: skip
        totals = way.ask(command="flows", by="outbound")["totals"]
        assert [(one["name"], one["flows"]) for one in totals] == [("direct", ENTRIES)]
        figure(f"of {ENTRIES} entries of ours: {said(runs)}; load {os.getloadavg()[0]:.0f}")
        # A second in which nobody looks: the counter of looks stands, and no processor time has gone where one would.
        spent, looks = way.spent(), way.ask(command="status")["looks"]
        time.sleep(1)
        assert way.ask(command="status")["looks"] == looks
        idle = way.spent() - spent
        figure(f"idle beside them: {idle * 1000:.0f} ms of the processor in a second")
        assert idle < min(cpu for _, _, cpu in runs)
        way.gateway.call(lambda: conntrack.delete_flow(
            "udp", Address.of("192.168.7.10", 1024), Address.of("198.51.100.9", 443)))  # fmt: skip
        assert way.listed()[0] == ENTRIES - 1
    finally:
        way.gateway.run(["conntrack", "-F"])


def test_t16_ends_that_nobody_reads_in_time_are_known_to_be_lost(way: Way) -> None:
    heard: list[Any] = []
    with closing(way.gateway.call(lambda: Ended(mark.DIRECT, mark.CLASS, heard.append))) as ended:
        way.gateway.call(lambda: fill(mark.DIRECT))
        way.gateway.run(["conntrack", "-F"])
        while ended.read():
            pass
        assert ended.lost > 0
        assert 0 < len(heard) < ENTRIES
    assert way.ask(command="status")["overruns"] == 0, "nobody watched"
