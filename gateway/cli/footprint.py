"""What a gateway takes on disk and in memory: the figures of ``gateway run --minimal``, and what that leaves out."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from gateway.kernel.bpf import syscall

OPTIONAL = ("uvloop", "re2", "bcc")
"""Modules without which everything but what they are for works: a quicker loop, regular expressions in rules, a loader
of BPF programs."""


class Without(MetaPathFinder):
    """As if modules of these names were not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in self._names:
            raise ModuleNotFoundError(f"No module named {fullname!r} (--minimal)", name=fullname)
        return None


def minimize() -> None:
    """Nothing optional in this process from now on: no BPF, none of ``OPTIONAL``. To be called before they are."""
    syscall.forbid("switched off (--minimal)")
    sys.meta_path.insert(0, Without(OPTIONAL))


def disk() -> dict[str, int]:
    """Bytes of what was loaded: each package outside of Python's own library, whole, as it was installed (without
    bytecode), and below "python" the library's modules and the interpreter itself."""
    own = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    found = {"python": Path(sys.executable).resolve().stat().st_size}
    for name, module in sorted(sys.modules.items()):
        place = getattr(module, "__file__", None)
        if not place or name.partition(".")[0] in ("__main__", "__mp_main__"):
            continue
        file = Path(place).resolve()
        if any(root in file.parents for root in own) and "site-packages" not in file.parts:
            found["python"] += file.stat().st_size
        elif "." not in name and name not in found:
            found[name] = _size(file.parent) if file.name == "__init__.py" else file.stat().st_size
    return found


def _size(folder: Path) -> int:
    """Of all files below."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes: ``rss`` resident, ``pss`` of them with a fair share of what is shared, ``private`` those of no other
    process; empty where the kernel does not say (proc(5), smaps_rollup)."""
    try:
        text = Path(f"/proc/{process}/smaps_rollup").read_text()
    except OSError:
        return {}
    fields = dict(_fields(text))
    private = fields.get("Private_Clean", 0) + fields.get("Private_Dirty", 0)
    return {"rss": fields.get("Rss", 0), "pss": fields.get("Pss", 0), "private": private}


def _fields(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            yield words[0].rstrip(":"), int(words[1]) * 1024


def children() -> int:
    """Bytes, by fair shares, of the processes that this one has started: the reaper, dnsmasq."""
    folder = f"/proc/self/task/{os.getpid()}/children"
    try:
        numbers = Path(folder).read_text().split()
    except OSError:
        return 0
    return sum(memory(number).get("pss", 0) for number in numbers)


def lines() -> Iterator[str]:
    """For a person."""
    sizes = disk()
    python = sizes.pop("python")
    parts = ", ".join(f"{name} {_mb(size)}" for name, size in sorted(sizes.items(), key=lambda item: -item[1]))
    yield f"on disk {_mb(sum(sizes.values()))} MB ({parts}); of Python itself {_mb(python)} MB are used"
    took = memory()
    if took:
        more = children()
        yield (
            f"in memory {_mb(took['rss'])} MB, of which {_mb(took['private'])} MB are nobody else's"
            + (f"; its helpers {_mb(more)} MB" if more else "")
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
