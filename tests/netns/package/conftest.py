"""The Debian package of this checkout, built once for all tests of it; and the lab of the whole gateway."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import debian
from tests.netns.whole.conftest import lab, whole

__all__ = ["lab", "package", "rebuilt", "whole"]

NEXT = "0.1.0+1"
"""The version of a rebuild."""


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return debian.package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return debian.package(tmp_path_factory.mktemp("rebuilt"), NEXT)
