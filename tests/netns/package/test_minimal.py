"""``gateway run --minimal`` as a router: without BPF and without what is optional, and how little that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.whole.conftest import DIRECT, KERNEL, PROXIED, ROOT, USERSPACE, Whole, until

pytestmark = [pytest.mark.root, pytest.mark.slow]
FOREIGN = ("uvloop", "_re2", "libbpf", "libbcc")


@pytest.mark.parametrize("minimal", [True, False], ids=["minimal", "whole"])
def test_it_routes(whole: Whole, minimal: bool, figure: Callable[[str], None]) -> None:
    words = ["--minimal"] if minimal else []
    path = whole.write("open")
    command = [*whole.program, "run", *words, "-c", path, "--instance", whole.instance]
    whole.process = whole.gateway.popen(command, cwd=ROOT)
    assert until(whole.steers, 60), whole.process.told()
    for kind in ("tcp", "udp"):
        for six in (0, 1):
            assert whole.ask(kind, whole.client, DIRECT[six]) == KERNEL[six]
            assert whole.ask(kind, whole.client, PROXIED[six]) == USERSPACE[six]
    assert whole.names() == "198.51.100.1"
    maps = Path(f"/proc/{whole.process.pid}/maps").read_text()
    loaded = [name for name in FOREIGN if name in maps]
    said = whole.process.out.read_text().splitlines()
    if minimal:
        assert loaded == []
        assert [line.partition(" MB")[0].rpartition(" ")[0] for line in said] == ["on disk", "in memory"]
        for line in said:
            figure(line)
    else:
        assert "uvloop" in loaded, "so that it is seen when it is there"
        assert "libbpf" in loaded
        assert said == []
