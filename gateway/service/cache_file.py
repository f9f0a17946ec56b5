"""What outlives the process, by kind and key: choices of groups, fake addresses, rule sets that were downloaded.

One SQLite database with a write-ahead log (sqlite.org/wal.html): SIGKILL loses nothing that was written, a power cut at
most the newest writes, neither leaves half of one. sing-box keeps a bbolt file at the same place; that is not read.

Nothing here raises: where no file can be used nothing is stored, and ``problem`` says why.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

T = TypeVar("T")

APPLICATION = 0x67775F63
"""``PRAGMA application_id`` of ours: "gw_c"."""
VERSION = 1
LARGEST = 64 << 20
"""Bytes of one value; what is larger is not stored."""
BUSY = 2.0
"""Seconds that another process may hold the file."""
MAGIC = b"SQLite format 3\0"

log = logging.getLogger("gateway.cache")


class CacheFile:
    """See ``core.contracts.Store``. ``path`` is made, 0600, where it is not there; what is there and is broken is moved
    aside (``NAME.broken``), a database of another program is left alone. Opened by whoever asks it first. May be used
    from any thread. With ``reading`` nothing on the disk is made or changed: to look at what a gateway keeps."""

    def __init__(self, path: Path, identity: str = "", *, reading: bool = False) -> None:
        self.path = path
        self._identity = identity
        self._reading = reading
        self._lock = threading.Lock()
        self._base: sqlite3.Connection | None = None
        self._opened = False
        self.problem = ""
        """Why nothing is stored, "" where it is."""

    def open(self) -> None:
        """Now; ``problem`` says how it went."""
        self._do(lambda base: None, None)

    def _open(self) -> sqlite3.Connection:
        if self._reading:
            # Else SQLite makes a log beside it and leaves it there.
            still = "" if self.path.with_name(self.path.name + "-wal").exists() else "&immutable=1"
            place = f"file:{quote(str(self.path))}?mode=ro{still}"
            return sqlite3.connect(place, timeout=BUSY, isolation_level=None, check_same_thread=False, uri=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._broken():
            self._aside("no database")
        try:
            return self._ready()
        except sqlite3.OperationalError:
            raise  # held by another, or the disk is full: nothing is wrong with what is in it
        except sqlite3.DatabaseError as error:
            self._aside(str(error))
            return self._ready()

    def _broken(self) -> bool:
        try:
            with self.path.open("rb") as file:
                head = file.read(len(MAGIC))
        except FileNotFoundError:
            return False
        return bool(head) and head != MAGIC

    def _ready(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(self.path, 0o600)  # the log beside it takes its mode
        base = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            (owner,), (version,) = (
                base.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
            )
            if owner != APPLICATION and base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise OSError("it is another program's database")
            if version > VERSION:
                raise OSError(f"a later version has written it ({version})")
            (state,) = base.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(state)
            base.execute("PRAGMA journal_mode=WAL")
            base.execute("PRAGMA synchronous=NORMAL")
            base.execute(f"PRAGMA application_id={APPLICATION}")
            base.execute(f"PRAGMA user_version={VERSION}")
            base.execute(
                "CREATE TABLE IF NOT EXISTS entry (identity TEXT, kind TEXT, key TEXT, value BLOB NOT NULL, "
                "PRIMARY KEY (identity, kind, key))"
            )
        except BaseException:
            base.close()
            raise
        return base

    def _aside(self, reason: str) -> None:
        """Raises OSError."""
        target = self.path.with_name(self.path.name + ".broken")
        os.replace(self.path, target)
        for ending in ("-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        log.warning("%s cannot be read (%s): begun anew, the old one is %s", self.path, reason, target.name)

    def _fail(self, error: Exception) -> None:
        before, self.problem = self.problem, f"{self.path}: {getattr(error, 'strerror', '') or error}"
        if self.problem != before and not self._reading:
            log.warning("nothing is stored: %s", self.problem)

    def _do(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        with self._lock:
            if not self._opened:
                self._opened = True
                try:
                    self._base = self._open()
                except (OSError, sqlite3.Error) as error:
                    self._fail(error)
            if self._base is None:
                return otherwise
            try:
                found = work(self._base)
            except sqlite3.Error as error:
                self._fail(error)
                return otherwise
            self.problem = ""
            return found

    def get(self, kind: str, key: str) -> bytes | None:
        """What was put there last, None for nothing."""
        found = self._do(
            lambda base: base.execute(
                "SELECT value FROM entry WHERE identity=? AND kind=? AND key=?", (self._identity, kind, key)
            ).fetchone(),
            None,
        )
        return None if found is None else bytes(found[0])

    def items(self, kind: str) -> list[tuple[str, bytes]]:
        """All of one kind, by key."""
        rows: list[tuple[str, bytes]] = self._do(
            lambda base: base.execute(
                "SELECT key, value FROM entry WHERE identity=? AND kind=? ORDER BY key", (self._identity, kind)
            ).fetchall(),
            [],
        )
        return [(str(key), bytes(value)) for key, value in rows]

    def put(self, kind: str, key: str, value: bytes) -> None:
        self.change([(kind, key, value)])

    def delete(self, kind: str, key: str) -> None:
        self.change([(kind, key, None)])

    def change(self, entries: Iterable[tuple[str, str, bytes | None]]) -> None:
        """All or none of them: (kind, key, value), None takes it away."""
        wanted = list(entries)

        def work(base: sqlite3.Connection) -> None:
            base.execute("BEGIN IMMEDIATE")
            try:
                for kind, key, value in wanted:
                    place = (self._identity, kind, key)
                    if value is None:
                        base.execute("DELETE FROM entry WHERE identity=? AND kind=? AND key=?", place)
                    elif len(value) <= LARGEST:
                        base.execute("INSERT OR REPLACE INTO entry VALUES (?, ?, ?, ?)", (*place, value))
                base.execute("COMMIT")
            except BaseException:
                if base.in_transaction:
                    base.execute("ROLLBACK")
                raise

        self._do(work, None)

    def close(self) -> None:
        """Idempotent; what is asked afterwards is not there."""
        with self._lock:
            self._opened = True
            if self._base is not None:
                self._base.close()
                self._base = None
