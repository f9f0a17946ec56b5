"""Names of groups, as rules may ask for them."""

from __future__ import annotations

import grp

import pytest

from gateway.kernel.owner import group_names


def test_every_name_of_a_group_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel goes by number: whichever name a rule has, userspace must agree."""
    entries = [grp.struct_group((name, "x", gid, [])) for name, gid in (("a", 1), ("vpn", 7), ("b", 2), ("tunnel", 7))]
    monkeypatch.setattr(grp, "getgrall", lambda: entries)
    group_names.cache_clear()
    try:
        assert group_names((2, 7, 99)) == ("b", "vpn", "tunnel")
        assert group_names(()) == ()
    finally:
        group_names.cache_clear()
