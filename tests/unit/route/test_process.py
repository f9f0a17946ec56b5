"""Process items as masks."""

from __future__ import annotations

from typing import Any

from gateway.route import process as module
from gateway.route.item.table import ITEMS
from gateway.route.process import ProcessAtoms


def atoms(*items: tuple[str, Any]) -> ProcessAtoms:
    made = {number: ITEMS[key].parse(value) for number, (key, value) in enumerate(items, 1)}
    return ProcessAtoms(made, {"alice": 1000}, {"users": 100, "vpn": 200})


def test_groups_set_bits_by_number() -> None:
    one = atoms(("group", ["vpn", "unknown"]), ("group_id", [200, 0]), ("user", "alice"), ("group", "unknown"))
    plan = one.plan(())
    assert dict(plan.gids) == {200: 3, 0: 2}
    assert dict(plan.uids) == {1000: 4}
    assert one.masks() == [0, 2, 3, 4, 6, 7]
    assert one.known(3) == {1: True, 2: True, 3: False, 4: False}


def test_a_process_may_be_in_several_groups() -> None:
    one = atoms(("group_id", 1), ("group_id", 2), ("group_id", 3), ("process_name", "curl"))
    assert one.masks() == [0, 1, 2, 4, 8, 3, 5, 6, 9, 10, 12, 7, 11, 13, 14, 15], "the fewer the sooner"


def test_masks_of_many_groups_are_bounded() -> None:
    one = atoms(*(("group_id", gid) for gid in range(50)), ("process_name", "curl"), ("user_id", 7))
    masks = one.masks()
    assert len(masks) <= module.MOST_WITH_GROUPS
    assert {1 << place for place in range(52)} <= set(masks), "each alone is known, whatever there is beside it"


def test_vectors_leave_groups_open() -> None:
    one = atoms(("group_id", 1), ("process_name", "curl"))
    assert sorted(one.vectors()) == [(0, 2), (4, 2)]
