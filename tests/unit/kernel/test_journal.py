"""The undo journal: what is recorded, what survives, what is void."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from gateway.kernel import journal
from gateway.kernel.journal import Journal, Step, read, replay


def test_replay_is_backwards_and_removes_the_journal(tmp_path: Path) -> None:
    book = Journal(tmp_path / "run")
    for number in range(3):
        book.record({"kind": "x", "op": "delete", "n": number})
    done: list[int] = []
    assert asyncio.run(replay(book.path, {"x": lambda step: done.append(step["n"])})) == []
    assert done == [2, 1, 0]
    assert not book.path.exists()


def test_the_first_original_stays(tmp_path: Path) -> None:
    book = Journal(tmp_path)
    book.record({"kind": "sysctl", "op": "set", "name": "a", "value": "0", "was": "1"})
    book.close()
    again = Journal(tmp_path)
    again.record({"kind": "sysctl", "op": "set", "name": "a", "value": "1", "was": "2"})
    assert [(step["value"], step["was"], step["earlier"]) for step in read(again.path)] == [("0", "2", "1")]
    size = again.path.stat().st_size
    again.record({"kind": "sysctl", "op": "set", "name": "a", "value": "1", "was": "2"})
    assert again.path.stat().st_size == size
    again.record({"kind": "sysctl", "op": "set", "name": "a", "value": "2", "was": "3"})
    third = Journal(tmp_path)
    assert [(step["value"], step["was"], step["earlier"]) for step in read(third.path)] == [("0", "3", "2")]


def test_torn_line_is_dropped_and_not_continued(tmp_path: Path) -> None:
    book = Journal(tmp_path)
    book.record({"kind": "x", "n": 1})
    book.record({"kind": "x", "n": 2})
    book.close()
    book.path.write_text(book.path.read_text()[:-5])
    assert [step["n"] for step in read(book.path)] == [1]
    again = Journal(tmp_path)
    again.record({"kind": "x", "n": 3})
    assert [step["n"] for step in read(again.path)] == [1, 3]


def test_another_boot_or_namespace_is_void(tmp_path: Path) -> None:
    for field, value in (("boot", "other"), ("netns", 1)):
        path = tmp_path / f"{field}.jsonl"
        path.write_text(json.dumps({**journal.head(), field: value}) + "\n" + json.dumps({"kind": "x"}) + "\n")
        assert read(path) == []


def test_a_failing_step_keeps_the_journal_and_not_the_others(tmp_path: Path) -> None:
    book = Journal(tmp_path)
    book.record({"kind": "good"})
    book.record({"kind": "bad"})
    done: list[Step] = []

    def fail(step: Step) -> None:
        raise OSError("no")

    failed = asyncio.run(replay(book.path, {"good": done.append, "bad": fail}))
    assert len(failed) == 1
    assert "no" in failed[0]
    assert done == [{"kind": "good"}]
    assert book.path.exists()


def test_a_trial_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """It begins with what stood then, the other one with what stood before the first gateway."""
    first = Journal(tmp_path)
    first.record({"kind": "sysctl", "op": "set", "name": "a", "value": "0", "was": "1"})
    first.close()
    (tmp_path / journal.TRIAL).mkdir()
    book = Journal(tmp_path)
    assert book.changed == 0.0
    book.record({"kind": "sysctl", "op": "set", "name": "a", "value": "1", "was": "2"})
    book.record({"kind": "x", "n": 1})
    assert book.changed > 0.0
    changed = book.changed
    book.record({"kind": "x", "n": 1})
    assert book.changed == changed, "that was no change"
    trial = read(tmp_path / journal.TRIAL / journal.NAME)
    assert [(step.get("value"), step["kind"]) for step in trial] == [("1", "sysctl"), (None, "x")]
    assert [step.get("value") for step in read(book.path)] == ["0", None]
    # Over, and confirmed: what follows is no part of it.
    (tmp_path / journal.TRIAL).rename(tmp_path / "over")
    book.record({"kind": "x", "n": 2})
    assert [step["kind"] for step in read(tmp_path / "over" / journal.NAME)] == ["sysctl", "x"]
    assert len(read(book.path)) == 3
