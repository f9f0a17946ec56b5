"""One laboratory for all; a gateway beside one neighbour after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from gateway.lab.lab import Lab
from tests.netns.far import far

from .house import SERVER, House, topology
from .neighbour import EVERY, Neighbour


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    """No gateway runs yet."""
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(topology()) as lab, far(lab, "server", SERVER[4]):
        yield House(lab)


@pytest.fixture(scope="module")
def alone(house: House) -> Iterator[House]:
    """With a gateway, and nobody beside it."""
    house.up()
    with closing(house):
        yield house


def params() -> list[Any]:
    """Each neighbour, with a mark where a program that is not ours has to load its rules."""
    return [
        pytest.param(
            one,
            id=one.name,
            marks=[pytest.mark.peer("iptables-nft")] if any(file.suffix != ".nft" for file in one.files) else [],
        )
        for one in EVERY
    ]


@pytest.fixture(scope="module", params=params())
def beside(house: House, request: pytest.FixtureRequest) -> Iterator[tuple[House, Neighbour]]:
    """A gateway beside a neighbour, with the lines that doctor gives."""
    neighbour: Neighbour = request.param
    house.up(firewall=neighbour.firewall)
    with closing(house):
        out = house.beside(neighbour)
        try:
            house.lines(*house.remedies("foreign-policies"))
            yield house, neighbour
        finally:
            out()
