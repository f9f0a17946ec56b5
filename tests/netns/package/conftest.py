"""The Debian package of this checkout, built once for all tests of it; and the lab of the whole gateway."""

from __future__ import annotations

import re
import subprocess
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
def rebuilt(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with another version, put together anew."""
    folder = tmp_path_factory.mktemp("rebuilt")
    subprocess.run(["dpkg-deb", "-R", package, folder / "tree"], check=True)
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {NEXT}", control.read_text()))
    name = package.name.replace(package.name.split("_")[1], NEXT)
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", folder / "tree", folder / name], check=True)
    return folder / name
