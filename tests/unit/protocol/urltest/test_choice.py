"""Which member of a urltest carries new flows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway import catalog
from gateway.config.load import load
from gateway.config.merge import Source
from gateway.core.errors import ConfigError
from gateway.prediction import kinds
from gateway.protocol.urltest.choice import choose


@pytest.mark.parametrize(
    ("delays", "current", "chosen"),
    [
        ({}, "", "a"),
        ({}, "b", "b"),
        ({}, "gone", "a"),
        ({"b": 900}, "", "b"),
        ({"b": 900}, "a", "b"),
        ({"a": 100, "b": 51, "c": 60}, "", "a"),
        ({"a": 100, "b": 50, "c": 49}, "", "c"),
        ({"a": 100, "b": 49, "c": 1}, "", "b"),
        ({"a": 20, "b": 70}, "b", "b"),
        ({"a": 19, "b": 70}, "b", "a"),
        ({"a": 500, "c": 400}, "b", "c"),
    ],
)
def test_chooses(delays: dict[str, int], current: str, chosen: str) -> None:
    assert choose("abc", delays, current, 50) == chosen


def test_without_members() -> None:
    assert choose([], {"a": 1}, "a", 50) == ""


def configuration(**group: Any) -> Any:
    value = {
        "outbounds": [
            {"type": "urltest", "tag": "auto", "outbounds": ["direct", "block"], **group},
            {"type": "direct", "tag": "direct"},
            {"type": "block", "tag": "block"},
        ]
    }
    return load([Source("c.json", json.dumps(value), value)], catalog)


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"interval": "31m"}, "longer than idle_timeout"),
        ({"interval": "2m", "idle_timeout": "1m"}, "longer than idle_timeout"),
        ({"outbounds": []}, "at least one"),
        ({"outbounds": ["none"]}, 'no outbound has the tag "none"'),
        ({"url": "example.com"}, "is not a URL"),
        ({"tolerance": 65536}, "tolerance"),
    ],
)
def test_what_is_wrong_is_said(group: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configuration(**group)


def test_what_is_empty_is_the_default() -> None:
    options = configuration(url="", interval="0s", tolerance=0, idle_timeout="0s").outbounds[0].options
    assert (options.url, options.interval) == ("https://www.gstatic.com/generate_204", 180)
    assert (options.tolerance, options.idle_timeout) == (50, 1800)


@pytest.mark.parametrize(
    ("chosen", "kind"), [((), "direct"), (("direct",), "direct"), (("block",), "block"), (("direct", "block"), "proxy")]
)
def test_what_it_comes_to(chosen: tuple[str, ...], kind: str) -> None:
    """A group whose flows leave in different ways by network is none that the kernel could stand for."""
    assert kinds(configuration(), lambda tag: chosen if tag == "auto" else ())["auto"] == kind
