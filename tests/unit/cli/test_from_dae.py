"""docs/from-dae.md: its configuration is right, and each flow of its table goes as the table says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gateway.cli import main

PAGE = (Path(__file__).resolve().parents[3] / "docs/from-dae.md").read_text()
ROWS = re.findall(r"^\| `([^`]*--(?:source|process)[^`]*)` \| (.* decides: .*) \|$", PAGE, re.M)


@pytest.fixture
def file(tmp_path: Path) -> str:
    (text,) = re.findall(r"```jsonc\n(.*?)```", PAGE, re.S)
    (tmp_path / "home.json").write_text(text)
    return str(tmp_path / "home.json")


def test_its_configuration_is_right(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", file]) == 0
    assert capsys.readouterr().err == ""


def test_there_are_rows() -> None:
    assert len(ROWS) == 6


@pytest.mark.parametrize(("words", "answer"), ROWS)
def test_row(file: str, words: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "-c", file, *shlex.split(words)]) == 0
    assert answer in capsys.readouterr().out.splitlines()
