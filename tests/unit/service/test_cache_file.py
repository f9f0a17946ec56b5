"""The cache file: what was written is there again, whatever ended the process; nothing about it stops a start."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.service.cache_file import LARGEST, CacheFile

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache.db"


def test_kinds_keys_and_identities_are_apart(path: Path) -> None:
    one, other = CacheFile(path), CacheFile(path, "other")
    one.put("selected", "pick", b"a")
    one.put("fakeip", "pick", b"b")
    other.put("selected", "pick", b"c")
    one.close()
    again = CacheFile(path)
    assert (again.get("selected", "pick"), again.get("fakeip", "pick")) == (b"a", b"b")
    assert other.get("selected", "pick") == b"c"
    assert other.get("fakeip", "pick") is None
    again.delete("selected", "pick")
    assert again.get("selected", "pick") is None
    assert again.items("fakeip") == [("pick", b"b")]
    for store in (other, again):
        store.close()


def test_a_change_is_whole(path: Path) -> None:
    store = CacheFile(path)
    store.put("k", "a", b"1")
    store.change([("k", "a", None), ("k", "b", b"2"), ("k", "c", b"x" * (LARGEST + 1))])
    assert store.items("k") == [("b", b"2")]
    store.close()


def test_only_root_may_read_it(path: Path) -> None:
    path.parent.mkdir()
    path.touch(0o644)
    store = CacheFile(path)
    store.put("k", "a", b"1")
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes["cache.db"] == 0o600
    assert set(modes.values()) == {0o600}
    store.close()


def test_sigkill_loses_nothing_that_was_written(path: Path) -> None:
    text = (
        "import os, signal, sys; from pathlib import Path; from gateway.service.cache_file import CacheFile\n"
        "store = CacheFile(Path(sys.argv[1]))\n"
        "for number in range(100): store.put('k', f'{number:03}', b'v')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", text, str(path)], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    store = CacheFile(path)
    assert [key for key, _ in store.items("k")] == [f"{number:03}" for number in range(100)]
    store.close()


@pytest.mark.parametrize("content", [b"\0\0\xed\xda\x0c\xed" * 999, b"SQLite format 3\0" + b"\x7f" * 5000, b"x"])
def test_a_file_that_is_none_is_moved_aside(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    store = CacheFile(path)
    store.open()
    assert store.problem == ""
    store.put("k", "a", b"1")
    assert store.get("k", "a") == b"1"
    assert path.with_name("cache.db.broken").read_bytes() == content
    store.close()


def test_a_page_that_is_broken_is_found(path: Path) -> None:
    store = CacheFile(path)
    store.change(("k", str(number), os.urandom(500)) for number in range(200))
    store.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 4096)
    again = CacheFile(path)
    assert again.items("k") == []
    assert again.problem == ""
    assert path.with_name("cache.db.broken").exists()
    again.close()


def test_another_programs_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE theirs (one)")
    base.commit()
    base.close()
    before = path.read_bytes()
    store = CacheFile(path)
    store.open()
    assert "another program" in store.problem
    store.put("k", "a", b"1")
    assert store.get("k", "a") is None
    assert path.read_bytes() == before
    store.close()


def test_where_nothing_can_be_written_nothing_is_stored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = CacheFile(tmp_path / "file" / "cache.db")
    store.open()
    assert "file" in store.problem
    store.put("k", "a", b"1")
    assert store.get("k", "a") is None
    store.close()
    store.close()


def test_who_only_looks_changes_nothing(path: Path) -> None:
    look = CacheFile(path, reading=True)
    assert look.get("k", "a") is None
    assert not path.parent.exists()
    store = CacheFile(path)
    store.put("k", "a", b"1")
    look = CacheFile(path, reading=True)
    assert look.get("k", "a") == b"1"
    look.put("k", "a", b"2")
    assert store.get("k", "a") == b"1"
    look.close()
    store.close()
    look = CacheFile(path, reading=True)
    assert look.get("k", "a") == b"1"
    look.close()
    assert [file.name for file in path.parent.iterdir()] == ["cache.db"]
