"""The cgroup programs on a real kernel: what a socket is marked with, seen by its owner and by nft."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.errors import KernelError
from gateway.kernel import cgroup, mark
from gateway.kernel.bpf import record
from gateway.kernel.bpf.loader import OBJECTS, library
from gateway.kernel.bpf.process import Loaded, ProcessMarks, netns_cookie
from gateway.kernel.bpf.record import Owner
from gateway.kernel.plan import ProcessPlan
from gateway.lab.links import programs
from gateway.route.item.pattern import Patterns

from .conftest import LOADERS

pytestmark = pytest.mark.root
ROOT = Path(__file__).resolve().parents[2]
HOSTS = {4: "192.0.2.9", 6: "2001:db8::9"}
ROOT_ALONE = ProcessPlan(uids=((0, 1),), classes=((0, 0), (1, 1)))
"""What both loaders can judge: the probe runs as root unless told otherwise."""


def of(number: int) -> int:
    return number << mark.SOCKET_SHIFT


@contextmanager
def marking(ground, plan: ProcessPlan, loader: Callable[[], Loaded] = LOADERS["co-re"]) -> Iterator[ProcessMarks]:
    marks = ProcessMarks(ground.cgroup, plan, netns=ground.cookie(), load=loader)
    try:
        assert marks.lost == ()
        yield marks
    finally:
        marks.close()


@pytest.mark.parametrize("family", [4, 6])
def test_exact_path_tcp_and_udp(ground, family: int) -> None:
    one, two = ground.copy("one/fetch"), ground.copy("two/fetch")
    plan = ProcessPlan(paths=((one, 1),), classes=((0, 0), (1, 5)))
    host = HOSTS[family]
    with marking(ground, plan):
        for program, expected in ((one, of(5)), (two, 0)):
            ground.forget()
            child = ground.start(program)
            assert child.order("open", name="t", kind="tcp", family=family) == expected
            assert child.order("connect", name="t", host=host, port=80) == expected
            assert child.order("open", name="c", kind="udp", family=family) == expected
            assert child.order("connect", name="c", host=host, port=53) == expected
            assert child.order("open", name="u", kind="udp", family=family) == expected
            # One datagram only: the first one counts.
            assert child.order("sendto", name="u", host=host, port=53) == expected
            assert ground.marks(family) == {("tcp", expected), ("udp", expected)}


def test_disguises(ground) -> None:
    real, other = ground.copy("real/tool"), ground.copy("other/thing")
    link = ground.folder / "link"
    link.symlink_to(real)
    hard = ground.folder / "hard"
    os.link(other, hard)
    plan = ProcessPlan(paths=((real, 1), (str(hard), 2)), classes=((0, 0), (1, 1), (2, 2)))
    with marking(ground, plan):
        for program, argv0, expected in (
            (real, "innocent", 1),
            (str(link), "", 1),
            (other, real, 0),
            (other, "tool", 0),
            (str(hard), "", 2),
        ):
            child = ground.start(program, argv0=argv0)
            assert child.order("open", name="t", kind="tcp") == of(expected), (program, argv0)


def test_replaced_while_running(ground) -> None:
    program = ground.copy("app/tool")
    with marking(ground, ProcessPlan(paths=((program, 1),), classes=((0, 0), (1, 1)))) as marks:
        child = ground.start(program)
        assert child.order("open", name="a", kind="tcp") == of(1)
        os.unlink(program)
        assert child.order("open", name="b", kind="tcp") == of(1)
        assert marks.owner(child.order("where", name="b")["cookie"]).path == program


def test_name(ground) -> None:
    one, two, three = ground.copy("one/fetch"), ground.copy("two/fetch"), ground.copy("fetch/other")
    with marking(ground, ProcessPlan(names=(("fetch", 1),), classes=((0, 0), (1, 7)))):
        for program, expected in ((one, of(7)), (two, of(7)), (three, 0)):
            assert ground.start(program).order("open", name="t", kind="tcp") == expected


def test_user_and_groups(ground) -> None:
    program = ground.copy("tool")
    plan = ProcessPlan(
        uids=((4001, 1),), gids=((4100, 2), (4200, 4)), classes=((0, 0), (1, 1), (2, 2), (4, 4), (3, 3), (5, 5))
    )
    with marking(ground, plan):
        for uid, gid, groups, expected in (
            (4001, 4000, [], 1),
            (4002, 4100, [], 2),
            (4002, 4000, [4200], 4),
            (4002, 4000, [*range(5000, 5040), 4200], 4),
            (4001, 4100, [], 3),
            (4001, 4000, [4001, 4200], 5),
            (4002, 4100, [4200], mark.UNKNOWN),
            (4002, 4000, [4001], 0),
            # More groups than the program looks at: userspace must judge.
            (4002, 4000, [*range(5000, 5070)], mark.UNKNOWN),
        ):
            child = ground.start(program, user=(uid, gid, groups))
            assert child.order("open", name="t", kind="tcp") == of(expected), (uid, gid, groups)


@pytest.mark.parametrize("family", [4, 6])
def test_user_changes_after_creation(ground, loader, family: int) -> None:
    program = ground.copy("tool")
    with marking(ground, ProcessPlan(uids=((4001, 1),), classes=((0, 0), (1, 1))), loader) as marks:
        child = ground.start(program)
        for name, kind in (("t", "tcp"), ("c", "udp"), ("u", "udp")):
            assert child.order("open", name=name, kind=kind, family=family) == 0
        child.order("user", uid=4001)
        assert child.order("connect", name="t", host=HOSTS[family], port=80) == of(1)
        assert child.order("connect", name="c", host=HOSTS[family], port=53) == of(1)
        assert child.order("sendto", name="u", host=HOSTS[family], port=53) == of(1)
        assert marks.owner(child.order("where", name="u")["cookie"]).uid == 4001
        ground.forget()
        child.order("sendto", name="u", host=HOSTS[family], port=53)
        assert ground.marks(family) == {("udp", of(1))}


def test_groups_change_after_creation(ground) -> None:
    program = ground.copy("tool")
    with marking(ground, ProcessPlan(gids=((4200, 1),), classes=((0, 0), (1, 1)))):
        child = ground.start(program)
        assert child.order("open", name="t", kind="tcp") == 0
        child.order("groups", gids=[4200])
        assert child.order("connect", name="t", host="192.0.2.9", port=80) == of(1)


def test_another_namespace_stays_unmarked(ground, loader, netns: Callable[[], str]) -> None:
    program = ground.copy("tool")
    with marking(ground, ROOT_ALONE, loader) as marks:
        child = ground.start(program, netns=netns())
        assert child.order("open", name="t", kind="tcp") == 0
        assert child.order("connect", name="t", host="192.0.2.9", port=80) == 0
        assert marks.owner(child.order("where", name="t")["cookie"]) is None


def test_another_cgroup_stays_unmarked(ground, loader) -> None:
    program = ground.copy("tool")
    with marking(ground, ROOT_ALONE, loader):
        outside = type(ground)(ground.cgroup.parent, ground.netns, ground.folder)
        try:
            assert outside.start(program).order("open", name="t", kind="tcp") == 0
        finally:
            outside.close()


@pytest.mark.parametrize("own", [mark.OWN, mark.OWN | 0x1234, 0x02000000, 0x0C000000, 0x05000007])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_foreign_and_own_marks_are_kept(ground, loader, own: int, kind: str) -> None:
    program = ground.copy("tool")
    with marking(ground, ROOT_ALONE, loader):
        child = ground.start(program)
        child.order("open", name="s", kind=kind)
        assert child.order("own", name="s", own=own) == own
        assert child.order("connect", name="s", host="192.0.2.9", port=80) == own


def test_low_bits_belong_to_others(ground, loader) -> None:
    program = ground.copy("tool")
    with marking(ground, ProcessPlan(uids=((0, 1),), classes=((0, 0), (1, 29))), loader):
        child = ground.start(program)
        child.order("open", name="s", kind="udp")
        child.order("own", name="s", own=0x00ABCDEF)
        assert child.order("connect", name="s", host="192.0.2.9", port=80) == of(29) | 0x00ABCDEF


@pytest.mark.parametrize("family", [4, 6])
def test_users_and_groups_without_btf(ground, netns: Callable[[], str], family: int) -> None:
    """What is certain where helpers alone are asked: the user, and a group where no other could matter."""
    program, host, elsewhere = ground.copy("tool"), HOSTS[family], netns()
    unknown = mark.UNKNOWN
    group = {"gids": ((4100, 2),), "classes": ((0, 0), (1, 1), (2, 2), (3, 3))}
    with marking(ground, ProcessPlan(), LOADERS["bcc"]) as marks:
        for plan, uid, gid, groups, expected in (
            (ProcessPlan(uids=((4001, 1),), classes=((0, 0), (1, 1))), 4001, 4000, [4002], 1),
            (ProcessPlan(uids=((4001, 1),), classes=((0, 0), (1, 1))), 4002, 4001, [4001], 0),
            (ProcessPlan(**group), 4001, 4100, [], 2),
            (ProcessPlan(uids=((4001, 1),), **group), 4001, 4100, [4001], 3),
            # Of the groups that are not seen one might be 4100.
            (ProcessPlan(**group), 4001, 4000, [4100], unknown),
            (ProcessPlan(uids=((4001, 1),), **group), 4001, 4000, [], unknown),
            (ProcessPlan(gids=((4100, 2), (4200, 4)), classes=((2, 2), (6, 3))), 4001, 4100, [4200], unknown),
            # Paths and names are never seen, what the thread's name says proves nothing.
            (ProcessPlan(names=(("tool", 4),), uids=((4001, 1),), classes=((0, 0), (1, 1), (4, 4))),
             4001, 4000, [], unknown),
            (ProcessPlan(paths=(("/else", 4),), classes=((0, 0), (4, 4))), 4001, 4000, [], unknown),
        ):  # fmt: skip
            marks.apply(plan)
            ground.forget()
            child, foreign = (ground.start(program, user=(uid, gid, groups), netns=where) for where in ("", elsewhere))
            for kind in ("tcp", "udp"):
                assert child.order("open", name=kind, kind=kind, family=family) == of(expected), (plan, kind)
                assert foreign.order("open", name=kind, kind=kind, family=family) == 0
                assert foreign.order("connect", name=kind, host=host, port=80) == 0
                assert marks.owner(foreign.order("where", name=kind)["cookie"]) is None
            child.order("connect", name="tcp", host=host, port=80)
            child.order("sendto", name="udp", host=host, port=53)
            assert ground.marks(family) == {("tcp", of(expected)), ("udp", of(expected))}
            owner = marks.owner(child.order("where", name="udp")["cookie"])
            where = os.stat(ground.cgroup).st_ino
            assert owner == Owner("", False, uid, gid, child.order("pid"), "tool", True, cgroup=where)


def test_unforeseen_mask_is_unknown(ground) -> None:
    program = ground.copy("tool")
    with marking(ground, ProcessPlan(paths=((program, 1),), names=(("tool", 2),), classes=((0, 0), (1, 1)))):
        assert ground.start(program).order("open", name="t", kind="tcp") == of(mark.UNKNOWN)


def test_path_beyond_the_walk_is_unknown(ground) -> None:
    long = ground.copy("/".join(["d" * 60] * 5) + "/tool")
    wide = ground.copy("w" * 100 + "/tool")
    leaf = ground.copy("l" * 64)
    short = ground.copy("tool")
    unknown = of(mark.UNKNOWN)
    with marking(ground, ProcessPlan(paths=((long, 1),), classes=((0, 0), (1, 1)))) as marks:
        assert ground.start(long).order("open", name="t", kind="tcp") == unknown
        assert ground.start(wide).order("open", name="t", kind="tcp") == unknown
        assert ground.start(short).order("open", name="t", kind="tcp") == 0
        # Where nothing asks for paths, a long one does not matter; the name is still seen whole.
        marks.apply(ProcessPlan(names=(("tool", 1),), classes=((0, 0), (1, 1))))
        assert ground.start(long).order("open", name="t", kind="tcp") == of(1)
        assert ground.start(leaf).order("open", name="t", kind="tcp") == unknown


def test_live_update(ground) -> None:
    one, two = ground.copy("one"), ground.copy("two")
    with marking(ground, ProcessPlan(paths=((one, 1),), classes=((0, 0), (1, 1)))) as marks:
        first, second = ground.start(one), ground.start(two)
        assert first.order("open", name="t", kind="udp") == of(1)
        for turn in range(4):
            # The same bits and masks change their meaning each time.
            which, number = ((two, 9), (one, 3))[turn % 2]
            marks.apply(ProcessPlan(paths=((which, 1),), classes=((0, 0), (1, number))))
            assert first.order("open", name=f"t{turn}", kind="tcp") == (of(number) if which == one else 0)
            assert second.order("open", name=f"t{turn}", kind="tcp") == (of(number) if which == two else 0)
        assert first.order("connect", name="t", host="192.0.2.9", port=9) == of(3)
        marks.apply(ProcessPlan())
        assert first.order("connect", name="t", host="192.0.2.9", port=9) == 0
        assert not list(marks._maps["paths"]) or all(set(marks._maps["paths"][k][-8:]) for k in marks._maps["paths"])
        marks.apply(ProcessPlan())
        assert list(marks._maps["paths"]) == []


def test_refused_plan_leaves_the_old_one(ground, loader) -> None:
    program = ground.copy("tool")
    with marking(ground, ROOT_ALONE, loader) as marks:
        child = ground.start(program)
        with pytest.raises(KernelError, match="class 30"):
            marks.apply(ProcessPlan(classes=((0, 30),)))
        with pytest.raises(KernelError, match="uids"):
            marks.apply(ProcessPlan(uids=tuple((uid, 1) for uid in range(9000)), classes=((0, 2),)))
        assert child.order("open", name="t", kind="tcp") == of(1)
        marks.apply(ProcessPlan(uids=((0, 1),), classes=((0, 0), (1, 2))))
        assert child.order("open", name="u", kind="tcp") == of(2)


def test_close_detaches_and_repeats(ground, loader) -> None:
    program = ground.copy("tool")
    with marking(ground, ROOT_ALONE, loader) as marks:
        child = ground.start(program)
        assert child.order("open", name="a", kind="tcp") == of(1)
        marks.close()
        assert child.order("open", name="b", kind="tcp") == 0
        marks.close()


HOLDER = """
import os, sys
from gateway.kernel.bpf.process import ProcessMarks
from gateway.kernel.plan import ProcessPlan
from gateway.kernel.probe import bpf
group, cookie, libraries = sys.argv[1:]
os.environ["LD_LIBRARY_PATH"] = libraries  # for children
marks = ProcessMarks(group, ProcessPlan(uids=((0, 1),), classes=((0, 0), (1, 1))), netns=int(cookie))
print(marks.instead, "//", {finding.name: finding for finding in bpf()}["bpf-process"], flush=True)
sys.stdin.read()
"""


def holder(ground, script: str = "", libraries: str | Path = "") -> subprocess.Popen[str]:
    """A process with marks of its own, in a mount namespace that ``script`` has changed."""
    words = [sys.executable, "-c", HOLDER, str(ground.cgroup), str(ground.cookie()), str(libraries)]
    script = f'set -e; {script}; exec "$0" "$@"' if script else 'exec "$0" "$@"'
    return subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, *words],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def libbpf() -> Path:
    library()
    return Path(next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libbpf" in line))


@pytest.mark.parametrize("missing", ["", "btf", "object", "libbpf"])
def test_what_is_missing_brings_the_other_loader_and_sigkill_detaches(ground, libbpf: Path, missing: str) -> None:
    program = ground.copy("tool")
    # A BCC that brings its own libbpf, as others than Debian's do.
    shutil.copy(libbpf, ground.folder / "libbpf.so.1")
    script, reason, remedy = {
        "": ("", "", "ok=True"),
        "btf": ("mount -t tmpfs none /sys/kernel/btf", "load process.bpf.o: ", "CONFIG_DEBUG_INFO_BTF=y"),
        "object": (f"mount -t tmpfs none {OBJECTS}", "open process.bpf.o: not built", "make -C bpf"),
        "libbpf": (f"mount --bind /dev/null {libbpf}", "open libbpf.so.1: ", "apt install libbpf1"),
    }[missing]
    held = holder(ground, script, ground.folder)
    try:
        instead, _, finding = held.stdout.readline().partition(" //")
        assert instead.startswith(reason) if missing else instead == ""
        assert remedy in finding
        assert ("BCC's program stands in" in finding) == bool(missing)
        child = ground.start(program)
        assert child.order("open", name="a", kind="tcp") == of(1)
    finally:
        held.kill()
        held.communicate()
    # The kernel lets go of links on a work queue.
    deadline = time.monotonic() + 20
    while child.order("open", name="b", kind="tcp") != 0 or programs(ground.cgroup):
        assert time.monotonic() < deadline
    assert child.order("open", name="c", kind="udp") == 0


def test_neither_loader(ground, libbpf: Path) -> None:
    """Without libbpf, which Debian's BCC needs too, both reasons are told and nothing is left."""
    held = holder(ground, f"mount --bind /dev/null {libbpf}")
    _, told = held.communicate(timeout=60)
    assert held.returncode == 1
    assert "load the process programs: open libbpf.so.1: " in told
    assert "nor with BCC: compile process.bpf.c with BCC: " in told
    assert programs(ground.cgroup) == []


def test_own_cookie_is_this_namespace(ground) -> None:
    assert netns_cookie() not in (0, ground.cookie())


def test_missing_cgroup_is_named(ground) -> None:
    with pytest.raises(KernelError, match="no-such-group"):
        ProcessMarks(ground.cgroup / "no-such-group", ProcessPlan())


def test_expressions_are_userspaces_once_a_path(ground) -> None:
    """An executable is unknown until its owner was asked for; then by its path, whatever file that is."""
    one, two, listed = ground.copy("opt/one"), ground.copy("bin/two"), ground.copy("opt/listed")
    plan = ProcessPlan(
        paths=((listed, 3),), expressions=((Patterns(["/opt/"]), 1),), classes=((0, 0), (1, 1), (3, 3))
    )  # fmt: skip
    unknown = of(mark.UNKNOWN)
    with marking(ground, plan) as marks:
        assert ground.start(listed).order("open", name="t", kind="tcp") == of(3)
        for program, expected in ((one, of(1)), (two, 0)):
            child = ground.start(program)
            assert child.order("open", name="t", kind="tcp") == unknown
            assert child.order("open", name="u", kind="udp") == unknown
            assert marks.owner(child.order("where", name="t")["cookie"]).unjudged
            assert child.order("connect", name="t", host="192.0.2.9", port=80) == expected
            assert child.order("sendto", name="u", host="192.0.2.9", port=80) == expected
            assert not marks.owner(child.order("where", name="t")["cookie"]).unjudged
            assert ground.start(program).order("open", name="t", kind="udp", family=6) == expected
        # An upgrade: another file under the path. The one that runs on keeps it too.
        child = ground.start(one)
        new = ground.copy("opt/.new")
        os.rename(new, one)
        assert child.order("open", name="t", kind="tcp") == of(1)
        assert ground.start(one).order("open", name="t", kind="tcp") == of(1)
        # Another path is another program.
        os.rename(one, ground.copy("bin/one"))
        child = ground.start(str(ground.folder / "bin/one"))
        assert child.order("open", name="t", kind="tcp") == unknown
        assert marks.owner(child.order("where", name="t")["cookie"]).unjudged
        assert child.order("connect", name="t", host="192.0.2.9", port=80) == 0
        # What was said belongs to its plan, also where that comes again.
        for expressions, expected in ((((Patterns(["/bin/"]), 1),), of(1)), (plan.expressions, 0)):
            marks.apply(replace(plan, expressions=expressions))
            child = ground.start(two)
            assert child.order("open", name="t", kind="tcp") == unknown
            marks.owner(child.order("where", name="t")["cookie"])
            assert child.order("open", name="t", kind="tcp") == expected
    with marking(ground, plan, LOADERS["bcc"]) as marks:
        child = ground.start(two)
        assert child.order("open", name="t", kind="tcp") == unknown
        marks.owner(child.order("where", name="t")["cookie"])
        assert child.order("open", name="t", kind="tcp") == unknown


def test_cgroups(ground, loader) -> None:
    """One is unknown until a process in it was asked for; then it and all in it are known by number."""
    program, mount = ground.copy("tool"), cgroup.mount_point()
    inner, other = ground.cgroup / "inner", ground.cgroup / "other"
    listed = f"/{inner.relative_to(mount)}"
    above = f"/{ground.cgroup.relative_to(mount)}"
    with marking(ground, ProcessPlan(cgroups=((listed, 1), (above, 2)), classes=((2, 2), (3, 3))), loader) as marks:

        def met(group: Path) -> tuple[int, int]:
            """Marks of a first socket there, and of the next."""
            child = type(ground)(cgroup.make(group), ground.netns, ground.folder)
            try:
                one = child.start(program)
                first = one.order("open", name="t", kind="tcp")
                marks.owner(one.order("where", name="t")["cookie"])
                for family in (4, 6):
                    assert one.order("open", name="u", kind="udp", family=family) == one.order(
                        "connect", name="t", host="192.0.2.9", port=80
                    )
                return first, one.order("mark", name="u")
            finally:
                child.close()

        try:
            unknown = of(mark.UNKNOWN)
            assert met(ground.cgroup) == (unknown, of(2))
            assert met(ground.cgroup) == (of(2), of(2))
            assert met(other) == (unknown, of(2))
            assert met(inner) == (unknown, of(3))
            assert met(inner / "deep") == (unknown, of(3))
            # A new one of that name.
            cgroup.remove(inner / "deep")
            cgroup.remove(inner)
            assert met(inner) == (unknown, of(3))
            # A process that is moved.
            child = ground.start(program)
            child.order("open", name="t", kind="tcp")
            cgroup.move(child.order("pid"), inner)
            assert child.order("connect", name="t", host="192.0.2.9", port=80) == of(3)
            child.process.kill()
            child.process.wait(20)
        finally:
            for group in (inner / "deep", inner, other):
                cgroup.remove(group)


def test_no_more_is_learned_than_there_is_room_for(ground, loader) -> None:
    """The oldest give way; what is met anew is judged anew."""
    program, mount = ground.copy("tool"), cgroup.mount_point()
    above = f"/{ground.cgroup.relative_to(mount)}"
    with marking(ground, ProcessPlan(cgroups=((above, 1),), classes=((0, 0), (1, 1))), loader) as marks:
        child = ground.start(program)

        def met() -> int:
            child.order("open", name="t", kind="udp")
            marks.owner(child.order("where", name="t")["cookie"])
            return child.order("connect", name="t", host="192.0.2.9", port=80)

        assert met() == of(1)
        _, _, _, room, _ = record.MAPS["cgroups"]
        for number in range(4 * room):
            marks._learn("cgroups", record.cgroup_key((1 << 50) + number), 0)
        assert len(list(marks._maps["cgroups"])) <= room
        # It may have stayed, as one that was met since.
        assert child.order("open", name="new", kind="tcp") in (of(1), of(mark.UNKNOWN))
        assert met() == of(1)
