"""How much there is room for: connections that are tracked, files that are open."""

from __future__ import annotations

import resource
from collections.abc import Iterator

from gateway.kernel.descriptors import WANTED
from gateway.kernel.probe.finding import Finding, capability, parameter

CONNECTIONS = 16384
"""A table of fewer is small for a home."""
FULL = 0.8
"""Of what there is: where the rest goes too, what is new is dropped."""
REMEDY = f"ulimit -n {WANTED} # systemd: LimitNOFILE={WANTED}"
MAY_RAISE = 24  # CAP_SYS_RESOURCE, linux/capability.h


def conntrack() -> Iterator[Finding]:
    limit, count = parameter("net/netfilter/nf_conntrack_max"), parameter("net/netfilter/nf_conntrack_count")
    if limit is None:
        yield Finding("conntrack", False, "the kernel has no connection tracking here", "modprobe nf_conntrack")
        return
    yield tracked(int(limit), int(count or 0))


def tracked(limit: int, count: int) -> Finding:
    small, full = limit < CONNECTIONS, count > FULL * limit
    room = max(65536, 1 << (2 * count).bit_length())
    return Finding(
        "conntrack", not small and not full, f"nf_conntrack_max {limit}, of which {count} are taken",
        f"sysctl -w net.netfilter.nf_conntrack_max={room}" if small or full else "", needed=full,
    )  # fmt: skip


def descriptors() -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = int(parameter("fs/nr_open") or WANTED)
    yield files(hard if hard != resource.RLIM_INFINITY else most, most, capability(MAY_RAISE))


def files(hard: int, most: int, may_raise: bool) -> Finding:
    """``hard``: the limit that a process has; ``most``: what the kernel lets it be raised to by one that ``may``."""
    limit = max(hard, min(most, WANTED)) if may_raise else hard
    ok = limit >= WANTED
    lines = [f"sysctl -w fs.nr_open={1 << WANTED.bit_length()}"] if most < WANTED else []
    lines.append(REMEDY)
    detail = f"{limit} open files" + ("" if ok else f": a flow in userspace takes two, {WANTED} are wanted")
    return Finding("open-files", ok, detail, "" if ok else "; ".join(lines), needed=False)
