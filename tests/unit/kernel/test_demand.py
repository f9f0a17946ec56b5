from __future__ import annotations

import pytest

from gateway.kernel.bpf.demand import BULK, HUGE, INTERVAL, LARGE, QUIET, Demand

LAN, WAN = "lan", "wan"


def counters(lan: tuple[int, int] = (0, 0), wan: tuple[int, int] = (0, 0)) -> dict[str, tuple[int, int]]:
    return {LAN: lan, WAN: wan}


def test_it_begins_with_demand_and_ends_without_bulk() -> None:
    demand = Demand()
    assert demand.look(counters(), 100.0)
    assert demand.look(counters(), 100.0 + QUIET - 0.1)
    assert not demand.look(counters(), 100.0 + QUIET)


@pytest.mark.parametrize(
    ("size", "packets", "wanted"),
    [
        (int(BULK * INTERVAL), 600, True),
        (int(BULK * INTERVAL) - 1, 600, False),  # too little
        (LARGE * 100_000, 100_000, True),
        (LARGE * 100_000 - 1, 100_000, False),  # too small, however many
        (HUGE * 100 - 1, 100, True),
        (HUGE * 100, 100, False),  # never on a wire
        (0, 0, False),
    ],
)
@pytest.mark.parametrize("interface", [LAN, WAN])
def test_bulk_of_one_interface_is_enough(interface: str, size: int, packets: int, wanted: bool) -> None:
    demand = Demand()
    demand.look(counters(), 0.0)
    now = QUIET + 1
    assert not demand.look(counters(), now)
    assert demand.look(counters() | {interface: (size, packets)}, now + INTERVAL) is wanted
    # It lasts from the last of it on.
    assert demand.look(counters() | {interface: (size, packets)}, now + INTERVAL + QUIET - 0.1) is wanted
    assert not demand.look(counters() | {interface: (size, packets)}, now + INTERVAL + QUIET)


def test_counters_that_begin_anew_and_interfaces_that_come() -> None:
    demand = Demand()
    demand.look({LAN: (1 << 40, 1 << 20)}, 0.0)
    assert not demand.look({LAN: (1500, 1)}, 10.0)
    assert not demand.look({LAN: (1500, 1), WAN: (1 << 40, 1 << 20)}, 10.25), "since when is not known"
    assert not demand.look({}, 10.5)
