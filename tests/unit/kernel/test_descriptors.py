"""The limit on open files: raised where it is low, to the hard limit where more is not allowed, never lowered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from gateway.kernel import descriptors

# In a process of its own: a lowered hard limit would stay for all other tests.
SCRIPT = """
import resource, sys
from gateway.kernel.descriptors import raise_limit
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
def refuse(*words):
    raise PermissionError
may, resource.setrlimit = resource.setrlimit, lambda kind, pair: may(kind, pair) if pair[1] <= hard else refuse()
print(raise_limit(wanted), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "reached"), [(64, 4096, 2048, 2048), (64, 1024, 2048, 1024), (512, 1024, 256, 512)]
)
def test_raise_limit(soft: int, hard: int, wanted: int, reached: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(soft), str(hard), str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(reached)] * 2


def test_used() -> None:
    """One more for one more file, up to the limit that holds."""
    before, limit = descriptors.used()
    with open("/dev/null"):
        assert descriptors.used() == (before + 1, limit)
    assert 0 < before < limit
