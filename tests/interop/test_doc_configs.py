"""The configurations of the pages about protocols and TLS are taken by sing-box and by us."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gateway.config.text import parse
from tests.interop.test_sing_box_check import check

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ["tls.md", "dns.md", "protocol/trojan.md", "protocol/vless.md"]


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("page", PAGES)
def test_pages(page, tmp_path):
    found = re.findall(r"```jsonc\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert found
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(parse(text, page)))
        theirs, ours = check(file)
        assert theirs[0], theirs[1]
        assert ours[0], ours[1]
