"""Doing the inverses of this package's steps, as the journal replays them."""

from __future__ import annotations

from gateway.kernel import sysctl
from gateway.kernel.netlink.diff import Inverse
from gateway.kernel.netlink.reconciler import Netlink

KINDS = frozenset(("address", "route", "rule", "link", "sysctl"))


async def undo(step: Inverse) -> None:
    """Do one inverse of ``KINDS``; "already gone" and "no longer ours" are success. Raises KernelError, ValueError."""
    if step["kind"] == "sysctl":
        sysctl.undo(step)
    elif step["kind"] in KINDS:
        async with Netlink() as netlink:
            await netlink.undo(step)
    else:
        raise ValueError(f"no netlink step: {step['kind']}")
