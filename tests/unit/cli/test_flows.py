"""Flows of both planes: what is listed of them, in which order, which of them, and how it looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.cli import flows as command
from gateway.cli import instance, main
from gateway.core.account import Row, Total
from gateway.core.address import IP, Address
from gateway.core.errors import GatewayError
from gateway.core.flow import Device, Flow, Process
from gateway.flows import KEYS, TRACED, Chosen, Rates, listing
from gateway.kernel.conntrack import Count, Counted, Entry
from gateway.service.control import Control

CLIENT, SITE = Address.of("192.168.7.10", 40000), Address.of("203.0.113.2", 443)
FIELDS = {
    "plane", "network", "source", "destination", "name", "inbound", "chain", "rule", "up", "down", "packets_up",
    "packets_down", "age", "timeout", "destinations", "device", "hostname", "process", "pid", "user", "rate_up",
    "rate_down",
}  # fmt: skip


@dataclass(eq=False)
class Runs:
    flow: Flow
    since: float = 90.0
    destinations: tuple[Address, ...] = (SITE,)
    name: str = "www.example"
    rule: int | None = 3
    chain: tuple[str, ...] = ("auto", "proxy")
    up: int = 1000
    down: int = 2000

    def close(self) -> None: ...


def runs(**fields: Any) -> Runs:
    return Runs(Flow("tcp", "in", "tproxy", CLIENT, SITE), **fields)


def tracked(
    count: int = 1, protocol: int = 6, up: Count | None = None, down: Count | None = None
) -> Generator[Counted, None, None]:
    for number in range(count):
        client = CLIENT._replace(port=number)
        yield Counted(Entry(protocol, client, SITE, SITE, client, 0x02000000, 0), 120, up, down)


class Devices:
    """Of the LAN's one device; ``said`` runs without it."""

    def __init__(self, *known: str) -> None:
        self.known = Device(*known) if known else None

    def find(self, source: IP) -> Device | None:
        return self.known


def names(address: IP, client: IP) -> tuple[str, ...]:
    return ("learned.example", "other.example")


async def answer_of(*words: Any, **more: Any) -> dict[str, Any]:
    return msgspec.structs.asdict(await listing(*words, **more))


def listed(running: list[Runs], kernel: Generator[Counted, None, None] | None = None, **request: Any) -> dict[str, Any]:
    return asyncio.run(answer_of(running, kernel, names, Devices(), 100.0, request))


def test_a_flow_of_userspace() -> None:
    answer = listed([runs(), runs(destinations=())])
    assert answer == {
        "flows": [Row("userspace", "tcp", "192.168.7.10:40000", "203.0.113.2:443", "www.example", "in",
                      ("auto", "proxy"), 3, 1000, 2000, age=10.0)],
        "left_out": 0,
    }  # fmt: skip


def test_a_flow_of_the_kernel() -> None:
    (row,) = listed([], tracked(up=Count(3, 300), down=Count(4, 0)))["flows"]
    assert row == Row(
        "kernel", "tcp", "192.168.7.10:0", "203.0.113.2:443", "learned.example", None, ("direct",), None, 300, 0, 3, 4,
        timeout=120,
    )  # fmt: skip
    (row,) = listed([], tracked(protocol=1))["flows"]
    assert (row.network, row.source, row.destination) == ("icmp", "192.168.7.10", "203.0.113.2")
    assert (row.up, row.down, row.packets_up, row.packets_down) == (None,) * 4


def test_order() -> None:
    rows = [
        Row("userspace", "tcp", "10.0.0.10:1", "b:1", chain=("proxy",), up=1, down=9, age=5.0, rate_up=0, rate_down=1),
        Row("userspace", "tcp", "10.0.0.9:1", "c:1", chain=("auto", "proxy"), up=4, down=2, age=9.0, rate_up=2),
        Row("kernel", "tcp", "10.0.0.9:2", "a:1", chain=("direct",)),
    ]
    orders = {"bytes": "012", "up": "102", "down": "012", "rate": "102", "age": "102", "source": "120",
              "destination": "201", "outbound": "120", "process": "012"}  # fmt: skip
    assert orders.keys() == KEYS.keys()
    for key, order in orders.items():
        chosen = Chosen(key, ())
        for row in rows:
            chosen.add(row)
        assert [str(rows.index(row)) for row in chosen.rows()] == list(order), key


@pytest.mark.parametrize(
    ("words", "planes"),
    [
        ([], "uk"), (["kernel"], "k"), (["www.ex"], "u"), (["203.0.113"], "uk"), (["203.0.113", "proxy"], "u"),
        (["direct"], "k"), (["kernel", "proxy"], ""),
    ],
)  # fmt: skip
def test_filter(words: list[str], planes: str) -> None:
    answer = listed([runs()], tracked(), filter=words)
    assert "".join(row.plane[0] for row in answer["flows"]) == planes


def test_no_more_than_the_limit() -> None:
    chosen = Chosen("up", ["10.0.0.1"], 10)
    for number in range(95):
        chosen.add(Row("kernel", "tcp", "10.0.0.1:1", "b:1", up=number * 7 % 95))
        chosen.add(Row("kernel", "tcp", "10.0.0.2:1", "b:1", up=number))
    assert [row.up for row in chosen.rows()] == list(range(94, 84, -1))
    assert chosen.left_out == 85
    answer = listed([], tracked(12_345))
    assert (len(answer["flows"]), answer["left_out"]) == (10_000, 2_345)


def test_an_unknown_key_is_said() -> None:
    with pytest.raises(GatewayError, match='no sort key "size"'):
        listed([], sort="size")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command's output, asked of a control socket."""
    monkeypatch.setattr(instance, "RUN", tmp_path)
    (tmp_path / "main").mkdir()

    def ask(running: list[Runs], kernel: Generator[Counted, None, None], *words: str) -> tuple[str, str]:
        async def body() -> int:
            control = Control(
                tmp_path / "main", {"flows": lambda request: answer_of(running, kernel, names, Devices(), 100, request)}
            )
            await control.start()
            try:
                return await asyncio.to_thread(main, ["flows", *words])
            finally:
                await control.close()

        assert asyncio.run(body()) == 0
        return tuple(capsys.readouterr())

    return ask


def test_json_is_one_document(said: Any) -> None:
    out, err = said([runs()], tracked(), "--json", "--sort", "outbound")
    document = json.loads(out)
    assert document.keys() == {"flows", "left_out"}
    assert all(flow.keys() == FIELDS for flow in document["flows"])
    assert [flow["chain"] for flow in document["flows"]] == [["auto", "proxy"], ["direct"]]
    assert document["flows"][1]["up"] is None
    assert err.count("sysctl -w net.netfilter.nf_conntrack_acct=1") == 1


def test_a_great_answer_arrives_whole(said: Any) -> None:
    out, err = said([], tracked(10_001, up=Count(1, 1), down=Count(1, 1)), "--json")
    assert len(json.loads(out)["flows"]) == 10_000
    assert json.loads(out)["left_out"] == 1
    assert err == ""


def test_table(said: Any) -> None:
    count = Count(12, 1_234_567)
    out, err = said([runs(rule=-1)], tracked(up=count, down=count))
    head, first, second = out.splitlines()
    assert head.split() == ["PLANE", "NET", "SOURCE", "DESTINATION", "OUTBOUND", "UP", "DOWN", "AGE", "RULE"]
    assert first == ("kernel     tcp  192.168.7.10:0      learned.example:443  direct      1.2 MB  1.2 MB    -      -")
    assert second.split()[-6:] == ["1.0", "KB", "2.0", "KB", "10s", "final"]
    assert err == ""


def test_rates_need_two_looks(said: Any) -> None:
    """Of flows that the first look has not seen all is new; so is it where a count fell."""
    old, fell, new = runs(), runs(up=10), runs()
    (entry,) = tracked(up=Count(9, 900), down=Count(9, 1900))
    before = {old: (400, 1000), fell: (500, 0), entry.key: (100, 900)}
    kernel = (one for one in [entry, entry._replace(number=7, short_up=Count(1, 100)), *tracked()])
    found = asyncio.run(answer_of([old, fell, new], kernel, names, Devices(), 100.0, {"sort": "rate"},
                                  rates=Rates(before, 2.0)))["flows"]  # fmt: skip
    assert [(row.plane, row.up, row.rate_up, row.rate_down) for row in found] == [
        ("userspace", 1000, 500.0, 1000.0), ("kernel", 1000, 500.0, 950.0), ("userspace", 10, 5.0, 1000.0),
        ("kernel", 900, 400.0, 500.0), ("userspace", 1000, 300.0, 500.0), ("kernel", None, None, None),
    ]  # fmt: skip
    lines = command.table(json.loads(json.dumps(msgspec.to_builtins(found))))
    assert [len(line) for line in lines] == [len(lines[0])] * 7
    assert lines[0].split()[-3:] == ["RATE", "AGE", "RULE"]
    assert [line.split()[-1] for line in lines[1:]] == ["3", "-"] * 3
    assert "1.5 KB/s" in lines[1]


def test_the_short_way_is_part_of_what_is_listed() -> None:
    (one,) = tracked(up=Count(1, 10), down=Count(2, 20))
    one = one._replace(short_up=Count(5, 500), short_down=Count(7, 700))
    (row,) = listed([], (found for found in [one]))["flows"]
    assert (row.up, row.down, row.packets_up, row.packets_down) == (510, 720, 6, 9)
    (row,) = listed([], (found for found in [one._replace(up=None, down=None)]))["flows"]
    assert (row.up, row.down) == (None, None), "a part of an unknown number"


def test_a_rule_is_looked_for_among_those_listed_alone() -> None:
    asked: list[int] = []

    def trace(found: Counted, process: Process | None) -> tuple[int, tuple[str, ...]] | None:
        asked.append(found.entry.source.port)
        return {0: (4, ()), 1: (5, ("auto", "direct"))}.get(found.entry.source.port)

    def body(count: int) -> Any:
        return asyncio.run(
            answer_of([runs()], tracked(count), names, Devices(), 100.0, {"sort": "source"}, trace=trace)
        )

    found = body(3)["flows"]
    assert [(row.source.rpartition(":")[2], row.rule, row.chain) for row in found] == [
        ("0", 4, ("direct",)), ("1", 5, ("auto", "direct")), ("2", None, ("direct",)), ("40000", 3, ("auto", "proxy")),
    ]  # fmt: skip
    asked.clear()
    assert len(body(TRACED + 50)["flows"]) == TRACED + 51
    assert len(asked) == TRACED


def test_totals_as_a_table() -> None:
    lines = command.totals(
        [Total("ph\x1bone", 2, 3_000_000, 40, 1_000_000, 2_000_000)._asdict(), Total("x" * 300, 1, 5)._asdict()],
        "device",
    )
    assert lines[0].split() == ["DEVICE", "FLOWS", "UP", "DOWN", "BYTES", "PACKETS"]
    assert lines[1].split() == ["ph?one", "2", "1.0", "MB", "2.0", "MB", "3.0", "MB", "40"]
    assert lines[2].split()[1:] == ["1", "-", "-", "5", "B", "-"]
    assert max(map(len, lines)) <= 120


def test_a_device_is_named_in_both_planes() -> None:
    devices = Devices("00:53:00:00:00:01", "lan", "phone")
    answer = asyncio.run(answer_of([runs()], tracked(), names, devices, 100.0, {"filter": ["phone"]}))
    assert [(row.device, row.hostname) for row in answer["flows"]] == [("00:53:00:00:00:01", "phone")] * 2
    flows = msgspec.to_builtins(answer["flows"])
    assert [line.split()[2] for line in command.table(flows)[1:]] == ["phone:40000", "phone:0"]
    assert [line.split()[2] for line in command.table(flows, numeric=True)[1:]] == [str(CLIENT), "192.168.7.10:0"]


def test_owners_of_flows_of_this_host() -> None:
    shell = Process("/usr/bin/cu\x1brl", 1000, "alice", pid=4242)

    def owner(network: str, source: Address, destination: Address) -> Process | None:
        assert (network, destination) == ("tcp", SITE)
        return {0: shell, 1: Process("", 77)}.get(source.port)

    flow = runs().flow._replace(process=shell)
    answer = asyncio.run(answer_of([Runs(flow)], tracked(100), names, Devices(), 100.0, {"sort": "process"}, owner))
    rows = [(row.plane, row.process, row.pid, row.user) for row in answer["flows"]]
    known = ("/usr/bin/cu\x1brl", 4242, "alice")
    assert rows[:2] == [("userspace", *known), ("kernel", *known)]
    assert set(rows[2:]) == {("kernel", None, None, "77"), ("kernel", None, None, None)}
    found = asyncio.run(answer_of([], tracked(5), names, Devices(), 100.0, {"filter": ["alice"]}, owner))["flows"]
    assert [row.source for row in found] == ["192.168.7.10:0"]
    lines = command.table(json.loads(json.dumps(msgspec.to_builtins(answer["flows"]))))
    assert lines[0].split()[4] == "PROCESS"
    assert "  cu?rl[4242] alice  " in lines[1]
    assert any("  ? 77  " in line for line in lines)
    assert max(map(len, lines)) <= 120


def test_icmp_has_no_owner() -> None:
    def owner(*asked: Any) -> Process | None:
        raise AssertionError(asked)

    assert asyncio.run(answer_of([], tracked(protocol=1), names, Devices(), 100.0, {}, owner))["flows"][0].user is None


def test_a_name_does_not_steer_the_terminal() -> None:
    flow = json.loads(json.dumps(msgspec.to_builtins(Row("userspace", "tcp", str(CLIENT), str(SITE), "a\x1b[2Jb\n"))))
    assert "a?[2Jb?:443" in command.table([flow])[1]


def test_long_fields_fit() -> None:
    address = f"[{':'.join(['2001'] * 8)}]:40000"
    flow = {
        "plane": "userspace", "network": "udp", "source": address, "destination": address, "name": "x" * 200,
        "chain": ["a" * 30, "b" * 30], "rule": 12, "up": 999_999, "down": 10**15, "age": 10**6, "destinations": 7,
        "hostname": None,
    }  # fmt: skip
    head, line = command.table([flow])
    assert len(line) <= 120
    assert len(head) <= 120
    assert "x:40000 +6 " in line
    assert "]:40000 ".replace("]", "2001]") in line


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "-"), (999, "999 B"), (1000, "1.0 KB"), (99_960, "100 KB"), (999_600, "1.0 MB"), (10**12, "1.0 TB"),
     (10**16, "10000 TB")],
)  # fmt: skip
def test_sizes(count: int | None, text: str) -> None:
    assert command.size(count) == text


def test_ages() -> None:
    assert [command.age(seconds) for seconds in (None, 9.9, 185, 7800, 273600)] == [
        "-",
        "9s",
        "3m05s",
        "2h10m",
        "3d04h",
    ]
