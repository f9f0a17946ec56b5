"""Keys and records of the BPF maps, against the bounds in bpf/process.h."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from gateway.core.errors import KernelError
from gateway.kernel.bpf import record
from gateway.kernel.bpf.process import asked, tables
from gateway.kernel.plan import ProcessPlan
from gateway.route.item.pattern import Patterns

HEADER = (Path(__file__).resolve().parents[4] / "bpf/process.h").read_text()


def test_bounds_agree_with_the_header() -> None:
    values = {name: int(value) for name, value in re.findall(r"#define (\w+) (\d+)u?\n", HEADER)}
    flags = ("PATH_INCOMPLETE", "REAL_USER", "PATH_UNJUDGED", "CGROUP_UNJUDGED")
    for name in ("COMPONENT", "PATH", "DEPTH", "GROUPS", "KEPT", *flags):
        assert values[name] == getattr(record, name), name


def test_maps_are_those_of_the_co_re_object() -> None:
    """The other loader makes its own; their sizes in bytes are compared where the object is loaded."""
    source = (Path(__file__).resolve().parents[4] / "bpf/co_re.h").read_text()
    rules, learned = (
        dict(re.findall(rf"^{kind}\((\w+), \w+, (\d+)\);", source, re.M)) for kind in ("RULES", "LEARNED")
    )
    whole = {name: (kind, entries) for kind, entries, name in re.findall(
        r"__uint\(type, BPF_MAP_TYPE_(\w+)\);\s+__uint\(max_entries, (\d+)\);[^}]*} (\w+) SEC", source)}  # fmt: skip
    declared = {name: ("HASH", entries, record.NO_PREALLOC) for name, entries in rules.items()}
    declared |= {name: ("LRU_HASH", entries, 0) for name, entries in learned.items()}
    declared |= {name: (*found, 0) for name, found in whole.items()}
    assert {
        name: (getattr(record, kind), int(entries), flags) for name, (kind, entries, flags) in declared.items()
    } == {name: (kind, entries, flags) for name, (kind, _, _, entries, flags) in record.MAPS.items()}


def test_path_key_runs_from_leaf_to_root() -> None:
    assert record.path_key("/usr/bin/curl") == b"curl\0bin\0usr\0".ljust(320, b"\0")
    assert record.path_key("//usr//bin/curl") == record.path_key("/usr/bin/curl")


@pytest.mark.parametrize("path", ["/", "", "/" + "x" * 64, "/".join(["d" * 60] * 6), "/a" * 41])
def test_paths_that_the_walk_does_not_reach(path: str) -> None:
    assert record.path_key(path) is None


def test_owner_round_trip() -> None:
    data = record.OWNER.pack(record.path_key("/opt/a b/tool"), b"tool", 7, 1000, 100, 0, 1 << 40)
    assert record.parse_owner(data) == record.Owner("/opt/a b/tool", True, 1000, 100, 7, "tool", cgroup=1 << 40)
    new = record.OWNER.pack(record.path_key("/a"), b"a", 7, 0, 0, record.PATH_UNJUDGED | record.CGROUP_UNJUDGED, 5)
    assert record.parse_owner(new) == record.Owner("/a", True, 0, 0, 7, "a", False, None, 5, True, True)
    cut = record.OWNER.pack(b"tool\0deep\0", b"tool", 7, 0, 0, record.PATH_INCOMPLETE, 0)
    assert record.parse_owner(cut).path == ""
    real = record.OWNER.pack(b"", b"tool", 7, 1000, 100, record.PATH_INCOMPLETE | record.REAL_USER, 0)
    assert record.parse_owner(real) == record.Owner("", False, 1000, 100, 7, "tool", True)
    for size in range(len(data)):
        with pytest.raises(struct.error):
            record.parse_owner(data[:size])


def test_members_that_are_kept() -> None:
    rest = [0] * record.KEPT
    assert record.parse_members(record.MEMBERS.pack(1, 2, 100, 0, *rest[2:])) == (100, 0)
    assert record.parse_members(record.MEMBERS.pack(1, 0, *rest)) == ()
    assert record.parse_members(record.MEMBERS.pack(0, 0, *rest)) is None


def test_tables_unite_and_refuse() -> None:
    plan = ProcessPlan(uids=((0, 1), (0, 4)), names=(("x" * 64, 2),), classes=((0, 0), (5, 29)))
    made = tables(plan)
    assert made["uids"] == {bytes(4): 5}
    assert made["names"] == {}
    assert asked(plan) == (0, 2, 0, 0, 0)
    assert asked(ProcessPlan(paths=(("/a", 1), ("/b", 4)), gids=((1, 8), (2, 8)))) == (5, 0, 8, 0, 0)
    late = ProcessPlan(paths=(("/a", 1),), expressions=((Patterns(["x"]), 2),), cgroups=(("/", 4), ("/b", 8)))
    assert asked(late) == (3, 0, 0, 2, 12)
    assert made["classes"] == {bytes(8): 1, struct.pack("=Q", 5): 30}
    for number in (-1, 30, 31):
        with pytest.raises(KernelError):
            tables(ProcessPlan(classes=((0, number),)))
