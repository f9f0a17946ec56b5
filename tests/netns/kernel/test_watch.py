"""What has to be in a table is what was put there, whatever others do in that very moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from gateway.kernel.nft import base
from gateway.kernel.nft.library import Library
from gateway.kernel.nft.watch import Watch
from gateway.kernel.plan import Base
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.topology import Host as Plan
from gateway.lab.topology import Topology

pytestmark = pytest.mark.root
TAKEN = (
    "flush ruleset",
    "delete table inet gateway_base",
    "flush set inet gateway_base lans",
    "flush chain inet gateway_base clamp",
    # Nothing is gone after it, but that cannot be known.
    "add table inet other",
)


def run(*lines: str) -> None:
    for line in lines:
        Library().run(f"{line}\n")


def apply() -> None:
    base.apply(Library(), Base(("lan0",), ("wan0",)))


def clamp() -> None:
    base.clamp(Library(), [])


@pytest.fixture
def inside() -> Iterator[Callable[[Callable[[Watch], Any]], Any]]:
    """Do something in a network namespace with a watch that has put the table there."""
    if os.geteuid():
        pytest.skip("needs root")
    with Lab(Topology("watch", (Plan("router"),), ())) as lab:
        host: Host = lab.host("router")

        def work(what: Callable[[Watch], Any]) -> Any:
            with closing(Watch(base.TABLE, base.SETS)) as watch:
                assert watch.put(apply)
                return what(watch)

        yield lambda what: host.call(lambda: work(what))


def test_what_was_put_is_whole(inside: Any) -> None:
    def work(watch: Watch) -> list[bool]:
        return [watch.whole(), watch.put(clamp), watch.whole(), watch.put(apply), watch.whole()]

    assert inside(work) == [True] * 5


@pytest.mark.parametrize("line", TAKEN[:-1])
def test_what_is_taken_is_missed_until_it_is_put_again(inside: Any, line: str) -> None:
    def work(watch: Watch) -> list[bool]:
        run(line)
        return [watch.whole(), watch.whole(), watch.put(apply), watch.whole()]

    assert inside(work) == [False, False, True, True]


@pytest.mark.parametrize("line", TAKEN)
def test_what_is_taken_at_once_is_not_forgotten(inside: Any, line: str) -> None:
    """Somebody else's transaction comes after the gateway's and before its look."""

    def work(watch: Watch) -> list[bool]:
        def disturbed() -> None:
            apply()
            run(line)

        return [watch.put(disturbed), watch.whole(), watch.put(apply), watch.whole()]

    assert inside(work) == [False, False, True, True]


def test_what_others_add_is_not_missed(inside: Any) -> None:
    def work(watch: Watch) -> list[bool]:
        run("add table inet other", "add rule inet gateway_base clamp counter", "delete table inet other")
        return [watch.whole(), watch.put(apply), watch.whole()]

    assert inside(work) == [True, True, True]
