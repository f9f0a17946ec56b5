"""What a lab must take down again, on disk before it is made: ``/run/gateway-lab/ID/state.json``.

The owner's process id and start time tell whether it is still alive; what a killed owner left is swept by the next
lab that starts and by ``gateway lab down``. Labs that were told to stand have no owner and are left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.box import RUN, STATE
from gateway.lab import cgroup, netns

FOLDER = Path("/run/gateway-lab")


@dataclass
class State:
    """One lab. ``owner`` is its process id, 0 for a standing lab; ``started`` is the owner's start in clock ticks.

    ``namespaces`` maps host names to namespace names; ``plan`` is what the scenario wants to find again.
    """

    id: str
    topology: str
    owner: int
    started: int
    group: str
    namespaces: dict[str, str]
    plan: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return FOLDER / self.id

    @property
    def abandoned(self) -> bool:
        return self.owner != 0 and start_ticks(self.owner) != self.started

    def write(self) -> None:
        draft = self.folder / "state.json.new"
        draft.write_text(json.dumps(asdict(self), indent=1))
        draft.replace(self.folder / "state.json")


def start_ticks(pid: int) -> int:
    """When process ``pid`` was started, in clock ticks since boot (proc(5), stat field 22); -1 if there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return -1


def new(topology: str, hosts: list[str], standing: bool) -> State:
    """Claim an unused id and write the state of a lab with these hosts."""
    while True:
        name = secrets.token_hex(3)
        with contextlib.suppress(FileExistsError):
            (FOLDER / name).mkdir(parents=True)
            break
    owner = 0 if standing else os.getpid()
    group = cgroup.root() / f"gateway-lab-{name}"
    namespaces = {host: f"gwlab-{name}-{host}" for host in hosts}
    state = State(name, topology, owner, start_ticks(owner) if owner else 0, str(group), namespaces)
    state.write()
    return state


def load(name: str) -> State:
    """The state of lab ``name``; raises LabError if there is none."""
    try:
        return State(**json.loads((FOLDER / name / "state.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise netns.LabError(f"there is no lab {name}: {error}") from None


def every() -> list[State]:
    """All labs of this machine, the oldest first."""
    files = sorted(FOLDER.glob("*/state.json"), key=lambda file: file.parent.stat().st_mtime)
    found = []
    for file in files:
        with contextlib.suppress(netns.LabError):
            found.append(load(file.parent.name))
    return found


def remove(state: State) -> None:
    """Take down all that ``state`` names, and the folders of gateways whose instance bears its id; whatever is gone
    already is no error. Safe to do twice at once."""
    cgroup.remove(Path(state.group))
    for name in state.namespaces.values():
        netns.delete(name)
    names = (f"*-{state.id}", f"*-{state.id}-*")
    instances = [folder for place in (RUN, STATE) for name in names for folder in place.glob(name)]
    for folder in (*instances, state.folder):
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sweep() -> list[str]:
    """Remove the labs whose owner has died; their ids."""
    with _lock():
        dead = [state for state in every() if state.abandoned]
        for state in dead:
            remove(state)
    return [state.id for state in dead]
