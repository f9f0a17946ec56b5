"""The undo journal: before each step that changes the host, its inverse is on disk.

One JSON object a line in ``RUN/undo.jsonl``; the head line names the boot and the network namespace, since a journal of
another boot or namespace describes a state that is gone. Replaying runs the steps backwards through executors that the
owners of each kind supply. Of steps with one key the first original is the true one (a later read would see our own
value); what we wrote last (``was``) is followed, and ``earlier`` is what we wrote before, for a crash may come between.

Where there is a folder ``RUN/trial`` each step is recorded there too, in a journal that begins with the trial: it leads
back to what stood before that.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from pathlib import Path
from typing import Any, Literal

from gateway.kernel.clock import boottime

Step = dict[str, Any]
Executor = Callable[[Step], Awaitable[None] | None]

log = logging.getLogger(__name__)

NAME = "undo.jsonl"
TRIAL = "trial"
VALUES = ("value", "was", "earlier", "old", "lifetime", "valid", "preferred", "pid", "start")
"""Fields that hold a state and do not name the thing."""


def head() -> Step:
    """What identifies this boot and this network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"boot": boot, "netns": os.stat("/proc/self/ns/net").st_ino}


class Journal:
    """``folder`` is the run directory of one instance (``/run/gateway/INSTANCE``); the file is 0600. An existing
    journal of this boot and namespace is continued, any other is replaced. Raises OSError."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.changed = 0.0
        """When the last step was recorded that was new, in seconds of CLOCK_BOOTTIME."""
        self._trial = Journal(folder / TRIAL) if (folder / TRIAL).is_dir() else None
        steps = read(self.path)
        # Written anew, so that what is appended never continues a line torn by a crash.
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(step) + "\n" for step in (head(), *steps)))
        temporary.chmod(0o600)
        os.replace(temporary, self.path)
        self._steps = {_key(step): step for step in steps}
        self._file = self.path.open("a", encoding="utf-8")

    def record(self, step: Step) -> None:
        """Append the inverse of what is about to be done; on disk when this returns."""
        if self._trial is not None:
            if self._trial.path.exists():
                self._trial.record(step)
                self.changed = self._trial.changed
            else:  # it is over
                self._trial.close()
                self._trial = None
        key = _key(step)
        known = self._steps.get(key)
        if known is not None:
            step = _follow(known, step)
            if step == known:
                return
        self._steps[key] = step
        if self._trial is None:
            self.changed = boottime()
        self._file.write(json.dumps(step) + "\n")
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def close(self) -> None:
        if self._trial is not None:
            self._trial.close()
        self._file.close()


def place(path: Path) -> Literal["here", "elsewhere", "gone"]:
    """What a journal describes: this boot and namespace, another namespace of this boot, or a state that is no more (an
    earlier boot; a journal that is absent or torn in its head). Raises PermissionError: it is root's."""
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.readline())
    except PermissionError:
        raise
    except (OSError, ValueError):
        return "gone"
    here = head()
    if not isinstance(found, dict) or found.get("boot") != here["boot"]:
        return "gone"
    return "here" if found == here else "elsewhere"


def read(path: Path) -> list[Step]:
    """The steps of a journal of this boot and namespace; empty for any other, for none, and for a torn last line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        try:
            step = json.loads(line)
        except ValueError:
            break  # torn by a crash while it was written: its step was not done
        if isinstance(step, dict):
            found.append(step)
    if not found or found[0] != head():
        return []
    steps: dict[str, Step] = {}
    for step in found[1:]:
        key = _key(step)
        steps[key] = _follow(steps[key], step) if key in steps else step
    return list(steps.values())


async def replay(path: Path, executors: dict[str, Executor]) -> list[str]:
    """Undo everything, newest first, and remove the journal. Returns what could not be undone, a line each; the
    journal then stays for the next try."""
    failed: list[str] = []
    for step in reversed(read(path)):
        try:
            done = executors[step["kind"]](step)
            if isawaitable(done):
                await done
        except Exception as error:  # one step that fails must not keep the others from being undone
            failed.append(f"{step}: {error}")
            log.warning("not undone: %s: %s", step, error)
    if not failed:
        path.unlink(missing_ok=True)
    return failed


def _follow(known: Step, step: Step) -> Step:
    """``known`` with what ``step`` wrote since."""
    if "was" not in step or step["was"] == known.get("was"):
        return known
    return {**known, "was": step["was"], "earlier": known.get("was")}


def _key(step: Step) -> str:
    return json.dumps({name: value for name, value in step.items() if name not in VALUES}, sort_keys=True)
