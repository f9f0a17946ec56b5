"""``python -m tests.peers NAME...``: fetch or build foreign programs and print their paths."""

from __future__ import annotations

import sys

from tests import peers

for name in sys.argv[1:] or sorted(peers.SOURCES):
    print(peers.path(name))
