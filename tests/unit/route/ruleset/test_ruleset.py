"""Rule sets: real files against sing-box's own reading of them, and broken files."""

from __future__ import annotations

import json
import random
import subprocess
import zlib
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from gateway.core.errors import ConfigError, PeerError
from gateway.core.wire import uvarint
from gateway.route.match import Default, Logical, Rule, Subject, match_any, point
from gateway.route.options import RuleSetOptions
from gateway.route.ruleset import binary
from gateway.route.ruleset.load import load, source
from tests import peers

SHARED = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "rule-set"
FILES = sorted(SHARED.glob("*.srs"))
if not FILES:
    pytest.skip(f"SKIPPED LOUDLY: no rule sets in {SHARED}", allow_module_level=True)


def content(rules: tuple[Rule, ...]) -> list[object]:
    """Rules as comparable values."""
    return [
        (rule.mode, content(rule.rules), rule.invert) if isinstance(rule, Logical)
        else ({item.atom for item in rule.items}, rule.invert)
        for rule in rules
    ]  # fmt: skip


@pytest.fixture(scope="module")
def sing_box() -> str:
    return str(peers.path("sing-box"))


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_real_files_read_as_sing_box_decompiles_them(file: Path, tmp_path: Path, sing_box: str) -> None:
    out = tmp_path / "out.json"
    subprocess.run([sing_box, "rule-set", "decompile", str(file), "-o", str(out)], check=True, timeout=60)
    assert content(binary.read(file.read_bytes())) == content(source(out.read_bytes(), "out.json", ""))


SOURCE = {
    "version": 3,
    "rules": [
        {"domain": ["a.example"], "domain_suffix": ["b.example", ".c.example"], "domain_keyword": ["kw"],
         "domain_regex": [r"^r\d+\."]},
        {"ip_cidr": ["192.0.2.0/25", "2001:db8::/48"], "network": ["udp"]},
        {"port": [443], "port_range": ["1000:2000"], "source_port": [5], "source_port_range": [":3"]},
        {"process_name": ["curl"], "process_path": ["/bin/x"], "process_path_regex": ["^/opt/"], "invert": True},
        {"type": "logical", "mode": "or", "invert": True, "rules": [
            {"source_ip_cidr": ["10.0.0.0/8"]},
            {"type": "logical", "mode": "and", "rules": [{"query_type": ["A"], "domain": "q.example"}, {"port": 53}]}]},
    ],
}  # fmt: skip


@pytest.mark.peer("sing-box")
@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_item_of_a_file_that_sing_box_compiled(version: int, tmp_path: Path, sing_box: str) -> None:
    text = json.dumps({**SOURCE, "version": version})
    (tmp_path / "in.json").write_text(text)
    subprocess.run(
        [sing_box, "rule-set", "compile", "in.json", "-o", "out.srs"], check=True, cwd=tmp_path, timeout=60
    )  # fmt: skip
    packed = (tmp_path / "out.srs").read_bytes()
    assert packed[3] == version or version == 3  # the newest version is written only where a rule needs it
    assert content(binary.read(packed)) == content(source(text.encode(), "in.json", ""))


@pytest.mark.peer("sing-box")
def test_matching_agrees_with_sing_box(sing_box: str) -> None:
    rng = random.Random(7)
    for stem in ("geosite-google", "geosite-netflix", "geoip-jp"):
        file = SHARED / f"{stem}.srs"
        rules = binary.read(file.read_bytes())
        names = ["www.google.com", "google.com", "notgoogle.com", "netflix.com", "a.nflxvideo.net", "example.org",
                 "1.0.16.1", "8.8.8.8", "2001:200::1", "2001:db8::1"]  # fmt: skip
        for name in rng.sample(names, 7):
            done = subprocess.run(
                [sing_box, "rule-set", "match", "-f", "binary", str(file), name],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            one = Subject()
            if name[0].isdigit():
                one.destination = point(ip_address(name))
            else:
                one.name = name
            assert match_any(rules, one) == ("match rules" in done.stdout + done.stderr), (stem, name)


SMALL = SHARED / "geosite-telegram.srs"


def test_every_truncation_is_one_error() -> None:
    data = SMALL.read_bytes()
    for size in range(len(data)):
        with pytest.raises(PeerError):
            binary.read(data[:size])


def test_truncations_and_flips_inside_the_stream_never_crash() -> None:
    rng = random.Random(3)
    for file in (SMALL, SHARED / "geosite-github.srs"):
        plain = zlib.decompress(file.read_bytes()[4:])
        for size in range(0, len(plain), 7):
            with pytest.raises(PeerError):
                binary.read(pack(plain[:size]))
        for _ in range(500):
            broken = bytearray(plain)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
            with suppress(PeerError):  # nothing else, whatever the bytes
                binary.read(pack(bytes(broken)))


def pack(plain: bytes, version: int = 2) -> bytes:
    return b"SRS" + bytes([version]) + zlib.compress(plain)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "not a binary"), (b"PK\x03\x04", "not a binary"), (b"SRS\x04", "version 4"), (b"SRS\x00", "version 0"),
        (b"SRS\x01garbage", "corrupt"), (pack(uvarint(1 << 60)), "rules in"), (pack(b"\x01\x07"), "rule type 7"),
        (pack(b"\x01\x00\x63"), "unknown item 99"), (pack(b"\x01\x00\x0d"), "package_name"),
        (pack(b"\x01\x00\x03" + uvarint(1 << 40)), "texts in"),
        (pack(b"\x01\x00\x09" + uvarint(1 << 40)), "numbers in"),
        (pack(b"\x01\x00\x06\x01" + b"\xff" * 8), "ranges in"),
        (pack(b"\x01\x00\x02\x00" + uvarint(1 << 50)), "bitmap"),
        (pack(b"\x01" + b"\x01\x00\x01" * 40 + b"\x00\xff\x00"), "deeper"),
        (pack(b"\x01\x00\x04\x01\x01(\xff\x00"), "RE2"),
        (pack(b"\0" * ((64 << 20) + 10)), "more than 64 MiB"),
    ],
)  # fmt: skip
def test_broken_files(data: bytes, part: str) -> None:
    with pytest.raises(PeerError, match=part):
        binary.read(data)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "not JSON"), ("[]", "expected"), ('{"rules": []}', "version"),
        ('{"version": 4, "rules": []}', "version 4"),
        ('{"version": 1, "rules": [{"domian": "x"}]}', 'did you mean "domain"'),
        ('{"version": 1, "rules": [{"wifi_ssid": "x"}]}', "not built yet"),
        ('{"version": 1, "rules": [{"rule_set": "x"}]}', "unknown field"),
        ('{"version": 1, "rules": [{}]}', "missing conditions"),
        ('{"version": 1, "rules": [{"ip_cidr": "1.2.3"}]}', "rules\\[0\\].ip_cidr"),
    ],
)  # fmt: skip
def test_broken_source(text: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        source(text.encode(), "x.json", "route.rule_set[0].path")


def test_local_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"version": 1, "rules": [{"domain": "a.example"}]} // a comment')
    (tmp_path / "b.srs").write_bytes(SMALL.read_bytes()[:100])
    rules = load(RuleSetOptions(tag="a", type="local", path="a.json"), tmp_path, "p")
    assert isinstance(rules[0], Default)
    for name, part in (("b.srs", "cut short"), ("c.srs", "No such file")):
        with pytest.raises(ConfigError, match=part) as caught:
            load(RuleSetOptions(tag="a", type="local", path=name), tmp_path, "route.rule_set[3]")
        assert caught.value.path == "route.rule_set[3].path"
