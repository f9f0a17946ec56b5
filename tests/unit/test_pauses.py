"""What is paused, what the kernel is told of it, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, cast

import pytest

from gateway.core.errors import GatewayError, KernelError
from gateway.kernel.steer import Steerer
from gateway.pauses import ALL, Pauses, identify

MAC = "02:00:5e:00:53:01"


class Table:
    """In place of a Steerer, and of what makes its rules."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.refuses = False
        self.pauses = Pauses(self.rules)
        self.pauses.use(cast(Steerer, self))
        self.now = 1000.0
        asyncio.get_running_loop().time = lambda: self.now  # type: ignore[method-assign]

    def rules(self) -> None:
        if self.refuses:
            raise KernelError("nft", 1)
        self.said.append(("rules", *self.pauses.kinds))

    def put(self, name: str, key: bytes, timeout: int) -> None:
        self.said.append(("put", name, key, timeout))

    def take(self, name: str, keys: list[bytes]) -> None:
        self.said.append(("take", name, *keys))

    def told(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said


def run(work: Callable[[Table], None]) -> None:
    async def main() -> None:
        work(Table())

    asyncio.run(main())


def test_a_device_is_an_element_and_the_first_of_a_kind_a_rule() -> None:
    def work(table: Table) -> None:
        four, pauses = ip_address("192.0.2.1").packed, table.pauses
        pauses.pause("192.0.2.1", "", None)
        assert table.told() == [("put", "paused4", four, 0), ("rules", "paused4")]
        pauses.pause("192.0.2.2", "", 10.2)
        assert table.told() == [("put", "paused4", ip_address("192.0.2.2").packed, 11)]
        pauses.pause(MAC, "tv", 60)
        assert table.told() == [
            ("put", "paused_mac", bytes.fromhex("02005e005301"), 60),
            ("rules", "paused4", "paused_mac"),
        ]
        pauses.resume("192.0.2.2")
        assert table.told() == [("take", "paused4", ip_address("192.0.2.2").packed)]
        pauses.resume("192.0.2.1")
        assert table.told() == [("rules", "paused_mac"), ("take", "paused4", four)]
        assert pauses.shown() == [{"device": MAC, "name": "tv", "left": 60.0}]
        pauses.pause("2001:db8::1", "", None)
        pauses.resume(None)
        assert ("rules",) in table.told()
        assert pauses.shown() == []

    run(work)


def test_everything_is_a_rule_and_no_element() -> None:
    def work(table: Table) -> None:
        table.pauses.pause("192.0.2.1", "", None)
        table.told()
        table.pauses.pause(ALL, "", None)
        assert table.told() == [("rules", "all")]
        with pytest.raises(GatewayError, match="everything is"):
            table.pauses.resume(MAC)
        table.pauses.resume(ALL)
        assert table.told() == [("rules", "paused4")]

    run(work)


def test_it_ends_by_itself() -> None:
    def work(table: Table) -> None:
        table.pauses.pause("192.0.2.1", "", 5)
        table.pauses.pause(ALL, "", 9)
        table.told()
        table.now += 5
        table.pauses._expire()
        assert [one["device"] for one in table.pauses.shown()] == [ALL]
        table.now += 4
        table.pauses._expire()
        assert table.told()[-1] == ("rules",)
        assert table.pauses.shown() == []

    run(work)


def test_another_table_is_told_what_is_left() -> None:
    def work(table: Table) -> None:
        table.pauses.pause("192.0.2.1", "", 60)
        table.pauses.pause(ALL, "", 60)
        table.pauses.use(None)
        table.now += 20.5
        table.told()
        table.pauses.use(cast(Steerer, table))
        assert table.told() == [("put", "paused4", ip_address("192.0.2.1").packed, 40)]

    run(work)


def test_what_the_kernel_refuses_is_not_paused() -> None:
    def work(table: Table) -> None:
        table.refuses = True
        with pytest.raises(KernelError):
            table.pauses.pause("192.0.2.1", "", None)
        assert table.pauses.shown() == []
        assert table.pauses.kinds == ()

    run(work)


def test_who_is_paused() -> None:
    def work(table: Table) -> None:
        holds, one = table.pauses.holds, ip_address("192.0.2.1")
        table.pauses.pause(MAC, "tv", 60)
        assert holds(one, MAC.upper()) == f"{MAC} is paused, 60 s left"
        assert holds(one, "") == ""
        assert holds(None, "") == ""
        table.pauses.pause("192.0.2.1", "", None)
        assert holds(one, "") == "192.0.2.1 is paused"
        table.pauses.pause(ALL, "", None)
        assert holds(None, "") == "everything is paused"

    run(work)


def test_nothing_is_resumed_that_is_not_paused() -> None:
    def work(table: Table) -> None:
        with pytest.raises(GatewayError, match="nothing is paused"):
            table.pauses.resume(None)
        table.pauses.pause(MAC, "", None)
        with pytest.raises(GatewayError, match=r"192\.0\.2\.1 is not paused"):
            table.pauses.resume("192.0.2.1")
        with pytest.raises(GatewayError, match="a second at least"):
            table.pauses.pause(MAC, "", 0.5)

    run(work)


def test_a_device_by_whatever_it_is_called() -> None:
    names = {MAC: "tv", "02:00:5e:00:53:02": "radio"}
    assert identify("192.0.2.1", names) == ("192.0.2.1", "")
    assert identify("2001:DB8::0:1", names) == ("2001:db8::1", "")
    assert identify(MAC.upper().replace(":", "-"), names) == (MAC, "")
    assert identify("TV", names) == (MAC, "tv")
    with pytest.raises(GatewayError, match="no lease has that name"):
        identify("phone", names)
