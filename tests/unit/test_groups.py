"""Tests that share a laboratory, or a machine's attention, run on one worker."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("groups")
def test_a_group_is_one(request: pytest.FixtureRequest) -> None:
    """pytest-xdist knows the group of a test by the end of its id, and spreads those that have none."""
    assert request.node.nodeid.endswith("@groups") == request.config.getoption("loadgroup", False)
