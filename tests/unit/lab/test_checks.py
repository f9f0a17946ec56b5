"""The checks of the demo, where a person reads of them."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.lab.checks import CHECKS

README = Path(__file__).resolve().parents[3] / "README.md"


def test_readme_lists_every_check() -> None:
    text = README.read_text()
    table = re.findall(r"^\| .* \| (`.*`) \|$", text.partition("| shown |")[2].partition("\n\n")[0], re.M)
    listed = re.findall(r"`([a-z0-9-]+)`", " ".join(table))
    assert sorted(listed) == sorted([*CHECKS, "clean-stop"])
    assert f" {len(listed)} checks" in text
