"""Reading JSON with comments and finding lines in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.merge import Source, locate, merge
from gateway.config.text import line_of, parse, split_path, strip
from gateway.core.errors import ConfigError

TEXT = """{
  // a comment with "quotes" and a , comma
  "log": {"level": "info"}, # another
  "outbounds": [
    {"type": "direct", "tag": "http://not-a-comment"},
    /* a long
       one */
    {"type": "socks",
     "server_port": "x",},
  ],
}
"""


def test_comments_and_trailing_commas() -> None:
    value = parse(TEXT, "f.json")
    assert value["outbounds"][0]["tag"] == "http://not-a-comment"
    assert [item["type"] for item in value["outbounds"]] == ["direct", "socks"]


def test_strip_keeps_offsets() -> None:
    assert len(strip(TEXT)) == len(TEXT)
    assert [i for i, c in enumerate(strip(TEXT)) if c == "\n"] == [i for i, c in enumerate(TEXT) if c == "\n"]


@pytest.mark.parametrize(
    ("path", "line"),
    [("log.level", 3), ("outbounds", 4), ("outbounds[0]", 5), ("outbounds[1].server_port", 9), ("outbounds[1].nix", 8),
     ("outbounds[7]", 4), ("nix", 1)],
)  # fmt: skip
def test_line_of(path: str, line: int) -> None:
    assert line_of(TEXT, split_path(path)) == line


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [('{\n"a": 1\n"b": 2}', 3, "not JSON"), ('{"a": 1,\n"b": 2,\n"a": 3}', 3, "twice"), ("[" * 100000, 0, "deep"),
     ('{"a": ' + "9" * 9999 + "}", 0, "number"), ("", 1, "not JSON"), ('{"a": "/*"', 1, "not JSON")],
)  # fmt: skip
def test_bad_syntax(text: str, line: int, word: str) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        parse(text, "f.json")
    assert caught.value.file == "f.json"
    if line:
        assert caught.value.line == line


@given(st.text(max_size=200))
def test_only_config_errors(text: str) -> None:
    try:
        parse(text, "f")
    except ConfigError:
        pass


@given(st.lists(st.one_of(st.integers(0, 99), st.from_regex(r"[a-z_]{1,9}", fullmatch=True)), min_size=1))
def test_every_step_of_a_path_is_found(steps: list[str | int]) -> None:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    assert split_path(path.removeprefix(".")) == tuple(steps)


def test_merge_and_locate() -> None:
    one = '{"log": {"level": "info"},\n"inbounds": [{"tag": "a"}]}'
    two = '{"log": {"level": "warn",\n"output": "x"},\n"inbounds": [\n{"tag": "b"}]}'
    sources = [Source("1.json", one, parse(one, "")), Source("2.json", two, parse(two, ""))]
    assert merge(sources) == {
        "log": {"level": "info", "output": "x"},
        "inbounds": [{"tag": "a"}, {"tag": "b"}],
    }
    assert locate(sources, split_path("inbounds[1].tag")) == ("2.json", 4)
    assert locate(sources, split_path("log.output")) == ("2.json", 2)
    assert locate(sources, split_path("log.level")) == ("1.json", 1)
