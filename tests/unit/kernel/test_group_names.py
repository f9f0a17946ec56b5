"""Names of groups and users, as rules may ask for them."""

from __future__ import annotations

import grp
import pwd

import pytest

from gateway.kernel.owner import forget_names, group_names, process, user_names


def test_every_name_of_a_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel goes by number: whichever name a rule has, userspace must agree."""
    entries = [grp.struct_group((name, "x", gid, [])) for name, gid in (("a", 1), ("vpn", 7), ("b", 2), ("tunnel", 7))]
    monkeypatch.setattr(grp, "getgrall", lambda: entries)
    forget_names()
    try:
        assert group_names((2, 7, 99)) == ("b", "vpn", "tunnel")
        assert group_names(()) == ()
    finally:
        forget_names()


def test_every_name_of_a_user_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        pwd.struct_passwd((name, "x", uid, 0, "", "/", "/bin/sh"))
        for name, uid in (("a", 1), ("root", 0), ("toor", 0), ("b", 2))
    ]
    monkeypatch.setattr(pwd, "getpwall", lambda: entries)
    monkeypatch.setattr(pwd, "getpwuid", {0: entries[1]}.__getitem__)
    forget_names()
    try:
        assert user_names(0) == ("root", "toor")
        assert user_names(-1) == ()
        assert (process("/bin/a", 0).user, process("/bin/a", 0).aliases) == ("root", ("toor",))
        assert process("/bin/a", -1).user == ""
    finally:
        forget_names()


def test_who_could_not_be_asked_for_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free descriptor the C library finds nobody, and does not say so."""
    forget_names()
    with monkeypatch.context() as patch:
        patch.setattr(grp, "getgrall", list)
        patch.setattr(pwd, "getpwuid", {}.__getitem__)
        assert (user_names(0), group_names((0,))) == ((), ())
    assert user_names(0)[0] == "root"
    assert group_names((0,))[0] == "root"


def test_a_name_that_changed_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_names()
    assert group_names((0,))[0] == "root"
    monkeypatch.setattr(grp, "getgrall", lambda: [grp.struct_group(("wheel", "x", 0, []))])
    forget_names()
    assert group_names((0,)) == ("wheel",)
    forget_names()
