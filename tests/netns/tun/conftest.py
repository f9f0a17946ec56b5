"""One lab for all tests of a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from gateway.lab.lab import Lab
from tests.netns.tun.rig import TOPOLOGY, Rig


@pytest.fixture(scope="package")
def rig() -> Iterator[Rig]:
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(TOPOLOGY) as lab, closing(Rig(lab)) as rig:
        yield rig
