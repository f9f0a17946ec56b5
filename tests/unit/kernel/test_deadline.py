"""The child that holds the deadline: when it undoes, whom it ends, and when it does nothing."""

from __future__ import annotations

import os
import signal

import pytest

from gateway.kernel import deadline
from gateway.kernel.deadline import DONE, Gateway, wait


class Told(Gateway):
    """``words``: what comes in each time it listens, None for nothing until the time is over; ``dies``: by itself."""

    def __init__(self, *words: bytes | None, dies: bool = True) -> None:
        self._words = list(words)
        self.signals: list[int] = []
        self.dead = False
        self._dies = dies

    def word(self, until: float) -> bytes | None:
        word = self._words.pop(0)
        self.dead = self.dead or (word == b"" and self._dies)
        return word

    def gone(self, seconds: float) -> bool:
        return self.dead

    def signal(self, number: int) -> None:
        self.signals.append(number)
        self.dead = self.dead or number == signal.SIGKILL


@pytest.mark.parametrize(
    ("gateway", "undoes", "signals"),
    [
        (Told(DONE), False, []),
        (Told(b""), True, []),
        # At the deadline it is asked first, and undoes by itself.
        (Told(None, DONE), False, [signal.SIGTERM]),
        (Told(None, b""), True, [signal.SIGTERM]),
        (Told(None, None), True, [signal.SIGTERM, signal.SIGKILL]),
        # It has lost its pipe and lives.
        (Told(b"", dies=False), True, [signal.SIGKILL]),
    ],
    ids=["confirmed", "killed", "late", "late and dead", "hung", "without a pipe"],
)
def test_what_it_does(gateway: Told, undoes: bool, signals: list[int]) -> None:
    assert wait(gateway, 0.0, 1.0) is undoes
    assert gateway.signals == signals


def test_the_clock_counts_a_suspended_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """select(2) has slept with the machine: the next look finds the deadline passed."""
    now = [100.0]
    asked: list[float] = []

    def select(read: list[int], write: list[int], other: list[int], timeout: float) -> tuple[list[int], ...]:
        asked.append(timeout)
        now[0] += 5000 if len(asked) == 2 else timeout
        return [], [], []

    monkeypatch.setattr(deadline.select, "select", select)
    monkeypatch.setattr(deadline, "boottime", lambda: now[0])
    gateway = Gateway(os.getppid())
    assert gateway.word(400.0) is None
    assert asked == [1.0, 1.0]
