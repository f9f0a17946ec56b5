"""Instances of the gateway that tests run, and what stands of them outside the test's own folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.box import RUN, STATE


def forget(*instances: str) -> None:
    """Their run folders, which stay where one was killed, and their state, which outlives ``down``."""
    for instance in instances:
        for place in (RUN, STATE):
            shutil.rmtree(place / instance, ignore_errors=True)


@contextmanager
def instance(own: object) -> Iterator[str]:
    """The name of one that is forgotten afterwards; ``own`` tells it from others of this process."""
    name = f"test-{os.getpid()}-{own}"
    try:
        yield name
    finally:
        forget(name)
