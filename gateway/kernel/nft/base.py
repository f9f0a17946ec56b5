"""The ownerless table ``inet gateway_base``: loads ``nft/base.nft`` filled from a ``plan.Base``, or removes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from gateway.core.errors import KernelError
from gateway.kernel.nft.library import Library, folder
from gateway.kernel.nft.render import base, narrow
from gateway.kernel.plan import Base

TABLE = "gateway_base"
SETS = ("wans", "lans", "open_tcp", "open_udp")
UNDO = {"kind": "nft", "op": "delete-table", "table": TABLE}
"""The inverse of ``apply``, for the journal."""


def apply(library: Library, plan: Base) -> None:
    """Replace the table in one transaction. Raises KernelError; the old table then stands."""
    text, guard = ((folder() / name).read_text() for name in ("base.nft", "guard.nft"))
    library.run(base(plan, text, guard))


def clamp(library: Library, wans: Iterable[str]) -> None:
    """TCP's segment size needs clamping on ``wans`` and nowhere else. (After ``apply``: on every uplink.) Raises
    KernelError."""
    library.run("\n".join(narrow(wans)) + "\n")


def shown(library: Library) -> str:
    """The table as it stands, to be loaded again; "" where there is none. Raises KernelError."""
    tables = library.run("list tables inet\n").split("\n")
    return library.run(f"list table inet {TABLE}\n") if f"table inet {TABLE}" in tables else ""


def restore(library: Library, text: str) -> None:
    """What ``shown`` has shown, in the place of what stands. Raises KernelError; the old table then stands."""
    library.run(f"add table inet {TABLE}\ndelete table inet {TABLE}\n{text}")


def undo(step: dict[str, object]) -> None:
    """Executor of ``UNDO``; a table that is gone already is fine."""
    if step.get("op") != "delete-table" or step.get("table") != TABLE:
        raise KernelError("undo", 0, f"not a step of ours: {step}")
    library = Library()
    library.run(f"add table inet {TABLE}\ndelete table inet {TABLE}\n")
    # A steering table without owner, of a gateway that died on a kernel that knows none; one with an owner is refused.
    with contextlib.suppress(KernelError):
        library.run("add table inet gateway\ndelete table inet gateway\n")
