"""Paths of cgroups."""

from __future__ import annotations

import os
import subprocess

import pytest

from gateway.core.flow import lineage
from gateway.kernel import cgroup


def test_a_lineage_ends_at_the_root() -> None:
    assert lineage("/a/b c/d") == ("/a/b c/d", "/a/b c", "/a", "/")
    assert lineage("/a") == ("/a", "/")
    assert lineage("/") == ("/",)
    assert lineage("") == ()


def test_of_a_process() -> None:
    assert cgroup.path_of_process(os.getpid()).startswith("/")
    child = subprocess.Popen(["true"])
    child.wait()
    assert cgroup.path_of_process(child.pid) == ""


@pytest.mark.root
def test_a_path_by_its_number() -> None:
    mount = cgroup.mount_point()
    made = cgroup.make(mount / f"gwtest-{os.getpid()}")
    try:
        inner = cgroup.make(made / "a b")
        number = inner.stat().st_ino
        assert cgroup.path_of(number) == f"/{made.name}/a b"
        cgroup.remove(inner)
        unseen = cgroup.make(made / "a b")
        gone = unseen.stat().st_ino
        assert gone != number, "a number is not used again"
        cgroup.remove(unseen)
        assert cgroup.path_of(gone) == ""
    finally:
        cgroup.remove(made)
    assert cgroup.path_of(mount.stat().st_ino) == "/"
    assert cgroup.path_of(1 << 60, os.getpid()) == ""


def test_a_path_of_a_process_where_numbers_may_not_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(number: int) -> str:
        raise PermissionError(1, str(number))

    monkeypatch.setattr(cgroup, "_path_of", refused)
    path = cgroup.path_of_process(os.getpid())
    number = os.stat(f"{cgroup.mount_point()}{path}").st_ino
    assert cgroup.path_of(number, os.getpid()) == path
    assert cgroup.path_of(number + 1, os.getpid()) == "", "it is in another one now"
    assert cgroup.path_of(number) == ""
