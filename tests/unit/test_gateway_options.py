"""The ``gateway`` object as docs/failure.md and docs/flows.md write it, and what it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.config.text import parse
from gateway.core.errors import ConfigError
from gateway.options import decode_section

PAGE = Path(__file__).resolve().parents[2] / "docs" / "failure.md"


def test_the_page_shows_what_is_taken() -> None:
    (text,) = re.findall(r"```jsonc\n(.*?)```", PAGE.read_text(), re.S)
    options = decode_section(parse(text, "failure.md")["gateway"], "gateway")
    assert (options.fail, options.heartbeat) == ("closed", 3)


def test_the_page_on_flows_shows_what_is_taken() -> None:
    (text,) = re.findall(r"```jsonc\n(.*?)```", PAGE.with_name("flows.md").read_text(), re.S)
    value = parse(text, "flows.md")["gateway"]
    assert decode_section(value, "gateway") == decode_section({**value, "kernel": {}}, "gateway"), "it is the default"
    value["kernel"]["accounting"] = False
    assert not decode_section(value, "gateway").kernel.accounting


@pytest.mark.parametrize(("value", "seconds"), [("2s", 2), ("1m", 60), ("0s", 0)])
def test_heartbeat(value: str, seconds: float) -> None:
    assert decode_section({"heartbeat": value}, "gateway").heartbeat == seconds


@pytest.mark.parametrize("value", ["1s", "2500ms", "-3s", "soon", 3])
def test_heartbeats_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        decode_section({"heartbeat": value}, "gateway")
    assert caught.value.path == "gateway.heartbeat"
