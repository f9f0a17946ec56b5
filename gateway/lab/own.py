"""The demo's checks of programs on the router itself: who is proxied, and that the others are the kernel's alone."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

from gateway.lab import cgroup
from gateway.lab.forecast import expect
from gateway.lab.observe import kernel_only, page, proxied
from gateway.lab.process import User
from gateway.lab.stage import GROUP, UNIT, USER, Stage, poll

SYSTEM = "/usr/bin/curl"
SESSION = "session.scope"
"""Cgroup of programs that no rule names."""


def proxied_by_process(stage: Stage) -> str:
    """A program at one path is proxied, the same program at another goes directly, by the kernel."""
    _sent_away(stage, str(stage.tool), uid=0, user="root")
    _stays(stage)
    return f"{stage.tool.parent.name}/{stage.tool.name} through the proxy, {SYSTEM} directly, in the kernel"


def proxied_by_exact_path(stage: Stage) -> str:
    """A program keeps its path when an upgrade puts another file there: the new one, and the old one, which still runs.
    The very file that was proxied, moved away, is another program."""
    tool, moved = stage.copy("upgraded"), stage.lab.folder / "moved" / "curl"
    site = stage.home.sites[0]
    _sent_away(stage, str(tool), uid=0, user="root")
    questions = stage.lab.folder / "questions"
    os.mkfifo(questions)
    # It runs, and waits for what to ask.
    old = stage.lab.host("router").popen([tool, "-s", "-S", "-m", "5", "-K", questions])
    asking = poll(lambda: _writer(questions), "the old program does not start")
    inode = tool.stat().st_ino
    moved.parent.mkdir(exist_ok=True)
    os.link(tool, moved)
    shutil.copy2(SYSTEM, tool.with_suffix(".new"))
    tool.with_suffix(".new").rename(tool)
    expect(tool.stat().st_ino != inode, "the file is the old one")
    with os.fdopen(asking, "w") as text:
        text.write(f'url = "{page(site.ipv4)}"\n')
    result = old.wait()
    expect(result.ok, f"the old program: {result.err.strip()}")
    proxied(stage, site, result.json())
    _sent_away(stage, str(tool), uid=0, user="root")
    for other in (stage.copy("elsewhere"), moved):
        _stays(stage, curl=str(other))
    return (
        f"{tool.parent.name}/{tool.name} through the proxy, so the file that replaced it and the old one that runs on; "
        f"both files elsewhere directly, in the kernel"
    )


def proxied_by_user(stage: Stage) -> str:
    """Flows of one user are proxied, those of root go directly."""
    entry = pwd.getpwnam(USER)
    _sent_away(stage, SYSTEM, User(entry.pw_uid, entry.pw_gid), uid=entry.pw_uid, user=USER)
    _stays(stage)
    return f"{USER} through the proxy, root directly"


def proxied_by_group(stage: Stage) -> str:
    """A user's flows are proxied where a group is among the supplementary ones, else they go directly."""
    group, entry = grp.getgrnam(GROUP).gr_gid, pwd.getpwnam("daemon")
    member, other = User(entry.pw_uid, entry.pw_gid, (group,)), User(entry.pw_uid, entry.pw_gid)
    _sent_away(stage, SYSTEM, member, uid=entry.pw_uid, user="daemon", gids=[entry.pw_gid, group])
    _stays(stage, user=other, who="daemon")
    return f"daemon with {GROUP} among its groups through the proxy, without it directly, in the kernel"


def proxied_by_cgroup(stage: Stage) -> str:
    """What runs in one cgroup or below it is proxied, the same program in another goes directly. Userspace judges the
    first flow from each, the kernel all others."""
    below = stage.unit(f"{UNIT}/worker")
    for group in (below.parent, below):
        for _ in range(2):
            path = f"/{group.relative_to(cgroup.root())}"
            _sent_away(stage, SYSTEM, within=group, uid=0, user="root", cgroup=path)
    _stays(stage)
    return f"{UNIT} and {UNIT}/worker through the proxy, {SESSION} directly, in the kernel"


def _sent_away(stage: Stage, curl: str, by: User | None = None, *, within: Path | None = None, **told: Any) -> None:
    """Over IPv4 and IPv6 it goes through the proxy, as predicted of ``told``."""
    site = stage.home.sites[0]
    for address in (site.ipv4, site.ipv6):
        forecast = stage.predict(address, process=curl, **told)
        seen = stage.fetch("router", page(address), curl=curl, user=by, within=within)
        forecast.held(stage.way(seen["client"][0]))
        proxied(stage, site, seen)


def _stays(stage: Stage, *, curl: str = SYSTEM, user: User | None = None, who: str = "root") -> None:
    """A flow that no rule names is the kernel's alone, so there is one entry for it."""
    site, group = stage.home.sites[0], stage.unit(SESSION)
    uid = user.uid if user else 0
    told = stage.predict(site.ipv4, process=curl, uid=uid, user=who)
    # Which cgroup this is, which path, userspace has to tell the kernel once.
    stage.fetch("router", page(site.ipv4), curl=curl, user=user, within=group)
    # Ports below those that the kernel chooses: a connection dialled anew would have another.
    ports = ("--local-port", "20000-20999")
    seen = stage.fetch("router", page(site.ipv4), *ports, curl=curl, user=user, within=group)
    expect(20000 <= seen["client"][1] < 21000, f"predicted {told}, but userspace dialled from {seen['client'][1]}")
    told.held(stage.way(seen["client"][0]))
    kernel_only(stage, stage.wan4, site.ipv4, seen, ttl=63)


def _writer(fifo: Path) -> int | None:
    """A descriptor to write into it, once somebody reads."""
    with contextlib.suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None
