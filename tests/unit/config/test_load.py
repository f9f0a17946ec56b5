"""Whole configurations: one clear line for each mistake, with file, line, JSON path and what to write instead."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from gateway import catalog
from gateway.config import anchor
from gateway.config.load import load, read
from gateway.config.root import Config
from gateway.core.errors import ConfigError

SHARED = Path(__file__).resolve().parents[3].parent / "shared"


def loaded(tmp_path: Path, *texts: str) -> Config:
    files = []
    for number, text in enumerate(texts):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        files.append(str(file))
    return load(read(files), catalog)


GOOD = """{
  // comments are welcome
  "log": {"level": "warn"},
  "inbounds": [{"type": "socks", "tag": "in", "listen": "127.0.0.1", "listen_port": 1080}],
  "outbounds": [
    {"type": "socks", "tag": "out", "server": "192.0.2.1", "server_port": 1080}
  ]
}"""


def test_good(tmp_path: Path) -> None:
    config = loaded(tmp_path, GOOD, '{"outbounds": [{"type": "http", "server": "192.0.2.2", "server_port": 1}]}')
    assert [(item.type, item.tag) for item in config.outbounds] == [("socks", "out"), ("http", "1")]
    assert config.inbounds[0].options.listen_port == 1080
    assert config.log.level == "warn"
    assert config.gateway is None


@pytest.mark.parametrize(
    ("replace", "by", "line", "path", "words"),
    [
        ('"log"', '"logs"', 3, "logs", 'unknown field "logs"; did you mean "log"'),
        ('"listen_port": 1080', '"listen_prot": 1080', 4, "inbounds[0].listen_prot", 'did you mean "listen_port"'),
        ('"listen_port": 1080', '"listen_port": "x"', 4, "inbounds[0].listen_port", "a whole number, got text"),
        ('"listen_port": 1080', '"sniff": true', 4, "inbounds[0].sniff", "exists in sing-box 1.12.12 but is not built"),
        ('"type": "socks", "tag": "out"', '"type": "vmess"', 6, "outbounds[0].type", "exists in sing-box 1.12.12"),
        ('"type": "socks", "tag": "out"', '"type": "sock"', 6, "outbounds[0].type", 'did you mean "socks"'),
        ('"type": "socks", "tag": "out",', '"tag": "out",', 6, "outbounds[0]", 'missing "type"'),
        ('"server": "192.0.2.1", ', "", 6, "outbounds[0]", 'missing required field "server"'),
        ('"tag": "out"', '"detour": "nix"', 6, "outbounds[0].detour", 'no outbound has the tag "nix"'),
        ('"tag": "out"', '"tag": "out", "detour": "out"', 6, "outbounds[0].detour", "cycle: out -> out"),
        ('"tag": "out"', '"connect_timeout": 5', 6, "outbounds[0].connect_timeout", "a duration is text with a unit"),
        ('"tag": "out"', '"domain_resolver": "nix"', 6, "outbounds[0].domain_resolver", "no DNS server has the tag"),
        ("// comments", "comments", 2, "", "not JSON"),
        ('"level": "warn"', '"level": "loud"', 3, "log.level", "Invalid enum value"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, replace: str, by: str, line: int, path: str, words: str) -> None:
    assert replace in GOOD
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, GOOD.replace(replace, by, 1))
    error = caught.value
    assert words in error.message
    assert (error.line, error.path) == (line, path)
    assert error.file.endswith("0.json")


def test_duplicate_tag_names_the_first_holder_and_the_second_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'"out" is already taken by outbounds\[0\]') as caught:
        loaded(tmp_path, GOOD, '{\n"outbounds": [\n{"type": "socks", "tag": "out", "server": "a", "server_port": 1}]}')
    assert caught.value.file.endswith("1.json")
    assert caught.value.line == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, content in (("missing.json", None), ("binary.json", b"\xff\xfe\x00"), ("list.json", b"[]")):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            read([str(path)])


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: the anchor's option table cannot be compared")
def test_anchor_table_is_complete() -> None:
    """Every type and every field of the anchor's own reflection is known here by name."""
    table = json.loads((SHARED / "data/options-1.12.12.json").read_text())
    for name, entry in table["types"].items():
        kind, _, short = name.partition("/")
        assert anchor.types(kind)[short] == entry["ref"]
    for name, entry in table["defs"].items():
        assert anchor.fields(name) >= set(entry.get("fields", {})), name


LATER = {("inbound", "tun"): {"include_mac_address", "exclude_mac_address"}}
"""Names of sing-box 1.14."""


@pytest.mark.parametrize("kind", ["inbound", "outbound", "dns"])
def test_built_types_and_fields_are_the_anchors(kind: str) -> None:
    """No type and no field of ours is an invention: what a file may say here, sing-box understands."""
    for name in catalog.names(kind):
        reference = anchor.types(kind)[name]
        ours = {field.encode_name for field in msgspec.structs.fields(catalog.options(kind, name))}
        assert ours - anchor.fields(reference) == LATER.get((kind, name), set()), (kind, name)
