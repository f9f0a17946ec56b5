"""When silence counts: the watcher's own clock, what excuses the gateway, words and the end of the pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gateway.kernel import watcher
from gateway.kernel.watcher import BEAT, DONE, LATE, LONG, PATIENCE, SECOND, Watched, watch


class Gateway(Watched):
    """``excuses``: whether each silent second is; the last one goes on for ever."""

    def __init__(self, *excuses: bool) -> None:
        self.killed: list[float] = []
        self._excuses = list(excuses)

    def excused(self) -> bool:
        return self._excuses.pop(0) if len(self._excuses) > 1 else self._excuses[0]

    def kill(self) -> None:
        self.killed.append(watcher.time.monotonic())


class World:
    """Time and the pipe: each event is a word, or seconds of silence; then the end."""

    def __init__(self, *events: bytes | float) -> None:
        self.now = 100.0
        self._events: Iterator[bytes | float] = iter(events)
        self._word = b""

    def select(self, read: list[int], write: list[int], other: list[int], timeout: float | None = None) -> object:
        event = next(self._events, b"")
        while timeout is None and not isinstance(event, bytes):
            self.now += event
            event = next(self._events, b"")
        if isinstance(event, bytes):
            self._word = event
            return (read, [], [])
        self.now += event
        return ([], [], [])

    def read(self, fd: int, size: int) -> bytes:
        return self._word

    def monotonic(self) -> float:
        return self.now


def watched(
    monkeypatch: pytest.MonkeyPatch, gateway: Gateway, *events: bytes | float, most: int = 3
) -> tuple[bool, list[float]]:
    """Whether it ended on purpose, and the seconds after which it was killed."""
    world = World(*events)
    monkeypatch.setattr(watcher.select, "select", world.select)
    monkeypatch.setattr(watcher.os, "read", world.read)
    monkeypatch.setattr(watcher.time, "monotonic", world.monotonic)
    gateway.excused()  # as the real one, which begins to count here
    gateway._excuses.insert(0, False)
    return watch(gateway, most), [when - 100 for when in gateway.killed]


SILENT = [SECOND] * 10


@pytest.mark.parametrize(
    ("events", "killed"),
    [
        ((BEAT, *SILENT), [3]),
        ((BEAT, SECOND, SECOND, BEAT, SECOND, SECOND, BEAT), []),
        ((BEAT, SECOND, SECOND, BEAT, *SILENT), [5]),
        # Words that came together: the last one counts.
        ((BEAT * 5 + PATIENCE, *SILENT), []),
        ((PATIENCE + BEAT, *SILENT), [3]),
        ((PATIENCE, *[SECOND] * 200), [LONG]),
        # It has not said a word yet.
        ((*[SECOND] * 200,), [LONG]),
        # Seconds of ours that were longer: begun anew.
        ((BEAT, SECOND, SECOND, SECOND + LATE + 0.1, SECOND, SECOND), []),
        ((BEAT, SECOND, 60.0, SECOND, SECOND, SECOND), [64]),
    ],
)
def test_seconds_that_count(monkeypatch: pytest.MonkeyPatch, events: list[bytes | float], killed: list[float]) -> None:
    assert watched(monkeypatch, Gateway(False), *events) == (False, killed)


def test_what_excuses_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watched(monkeypatch, Gateway(True), BEAT, *SILENT) == (False, [])
    gateway = Gateway(False, False, True, True, False)
    assert watched(monkeypatch, gateway, BEAT, *SILENT) == (False, [5])


@pytest.mark.parametrize("most", [0, 3])
def test_the_end(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    assert watched(monkeypatch, Gateway(False), BEAT, DONE, most=most) == (True, [])
    assert watched(monkeypatch, Gateway(False), BEAT, most=most) == (False, [])
    assert watched(monkeypatch, Gateway(False), BEAT, *SILENT, most=most)[1] == ([3] if most else [])


def test_only_our_parent_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Watched(os.getppid())
    assert parent.process >= 0
    assert not parent.gone(0)
    os.close(parent.process)
    assert Watched(os.getpid()).gone(0), "a number that somebody else has now"


def test_who_could_not_run_or_is_traced_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = iter([0, 0, 600_000_000, 600_000_000, 700_000_000])
    monkeypatch.setattr(Watched, "_queue", lambda self: next(waits))
    gateway = Watched(os.getppid())
    assert [gateway.excused() for _ in range(4)] == [False, True, False, False]
    os.close(gateway.process)
