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


def test_vectors_leave_groups_and_cgroups_open() -> None:
    for key, value in (("group_id", 1), ("cgroup", "/a")):
        one = atoms((key, value), ("process_name", "curl"))
        assert sorted(one.vectors()) == [(0, 2), (4, 2)]


def test_a_cgroup_has_the_bits_of_those_above() -> None:
    one = atoms(("cgroup", "/a"), ("cgroup", ["/a/b", "/c"]), ("cgroup", "/"), ("process_name", "curl"))
    plan = one.plan(())
    places = {"/": 4, "/a": 5, "/a/x": 5, "/a/b": 7, "/a/b/x/y": 7, "/c": 6, "/ab": 4, "": 0}
    assert {path: plan.placed(path) for path in places} == places
    assert set(one.masks()) == {0, 4, 5, 6, 7, 8, 12, 13, 14, 15}, "what no process has is not listed"


def test_expressions_of_a_path() -> None:
    """Of a listed path they are known; of others they hold in any combination, and vectors leave them open."""
    one = atoms(("process_path_regex", "^/opt/"), ("process_path", "/opt/curl"), ("process_path_regex", "curl$"))
    plan = one.plan(())
    assert dict(plan.paths) == {"/opt/curl": 7}
    assert {path: plan.judged(path) for path in ("/opt/x", "/bin/curl", "/opt/curl", "/bin/x", "")} == {
        "/opt/x": 1, "/bin/curl": 4, "/opt/curl": 5, "/bin/x": 0, "": 0,
    }  # fmt: skip
    assert set(one.masks()) == {0, 1, 4, 5, 7}
    assert sorted(one.vectors()) == [(0, 0b1010), (0b1110, 0)]
    assert not plan.empty
    assert one.plan(()) == plan != atoms(("process_path_regex", "^/usr/")).plan(())


def test_masks_of_many_expressions_are_bounded() -> None:
    one = atoms(*(("process_path_regex", f"x{n}") for n in range(40)), ("user_id", 7))
    masks = one.masks()
    assert len(masks) <= 2 * module.MOST_WITH_EXPRESSIONS
    assert {1 << place for place in range(41)} <= set(masks)
