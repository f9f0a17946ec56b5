"""``packaging/requirements.txt``: every library has a wheel for every machine, or is one that may be missing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("lock", ROOT / "packaging/lock.py")
assert SPEC
assert SPEC.loader
lock = importlib.util.module_from_spec(SPEC)
sys.modules["lock"] = lock
SPEC.loader.exec_module(lock)
MAY_MISS = {("google-re2", "musl")}
"""Each has a test of what becomes without it: test_without_re2 below."""


def name(requirement: str) -> str:
    return re.match(r"[A-Za-z0-9_.-]+", requirement)[0].lower()  # type: ignore[index]


def fits(file: str, target: lock.Target) -> bool:  # type: ignore[name-defined]
    """PEP 425: tags of a wheel, by its name."""
    python, abi, platforms = file.removesuffix(".whl").split("-")[-3:]
    mine = f"cp{target.python.replace('.', '')}"
    if platforms == "any":
        return "py3" in python.split(".")
    pythons = python == mine or (abi == "abi3" and int(python[3:]) <= int(target.python.split(".")[1]))
    return pythons and bool(set(platforms.split(".")) & set(target.platforms))


def test_the_table_is_what_is_read_from_it() -> None:
    wheels = lock.read()
    assert lock.text(wheels) == lock.FILE.read_text()
    assert all(re.fullmatch("[0-9a-f]{64}", one.sha256) for one in wheels)


def test_each_requirement_is_in_it_in_one_version() -> None:
    versions = {one.name: {other.version for other in lock.read() if other.name == one.name} for one in lock.read()}
    assert {name(one) for one in lock.requirements()} <= set(versions)
    assert all(len(found) == 1 for found in versions.values())


@pytest.mark.parametrize("target", lock.TARGETS, ids="-".join)
def test_there_is_a_wheel_for(target: lock.Target) -> None:  # type: ignore[name-defined]
    wheels = lock.read()
    for library in sorted({one.name for one in wheels}):
        found = [one.file for one in wheels if one.name == library and fits(one.file, target)]
        if (library, target.libc) in MAY_MISS:
            assert not found, "it is there now: make it a dependency like the others"
        else:
            assert found, library


def test_what_may_miss_is_an_extra() -> None:
    hard = {name(one) for one in lock.requirements(extras=False)}
    assert not hard & {library for library, _ in MAY_MISS}
    assert {library for library, _ in MAY_MISS} <= {name(one) for one in lock.requirements()}


@pytest.mark.soak
@pytest.mark.parametrize("target", lock.TARGETS, ids="-".join)
def test_the_index_has_them_all(target: lock.Target, tmp_path: Path) -> None:  # type: ignore[name-defined]
    """Asks the index that pip is configured for."""
    wheels = [one for one in lock.read() if fits(one.file, target)]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("".join(f"{one.name}=={one.version}\n" for one in wheels))
    missing = [one for one in lock.requirements() if (name(one), target.libc) in MAY_MISS]
    wanted = [one for one in lock.requirements() if one not in missing]
    assert set(lock.resolve(target, wanted, constraints)) == set(wheels)
    for one in missing:
        with pytest.raises(subprocess.CalledProcessError):
            lock.resolve(target, [one])


WITHOUT = """
import sys
from gateway.cli.footprint import Without
sys.meta_path.insert(0, Without(sys.argv[1:2]))
from gateway.cli import main
raise SystemExit(main(sys.argv[2:]))
"""


def call(library: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, library, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


@pytest.mark.slow
def test_without_re2(tmp_path: Path) -> None:
    """All goes on, but for what it is needed for, which is refused with its place."""
    plain, regex = tmp_path / "plain.json", tmp_path / "regex.json"
    plain.write_text('{"route": {"rules": [{"domain_suffix": "a.example", "action": "reject"}]}}')
    regex.write_text('{"route": {"rules": [{"domain_regex": "^a", "action": "reject"}]}}')
    assert call("re2", "check", "-c", str(plain)).returncode == 0
    refused = call("re2", "check", "-c", str(regex))
    assert refused.returncode == 1
    assert "route.rules[0].domain_regex" in refused.stderr
    assert "google-re2" in refused.stderr
    assert call("nothing", "check", "-c", str(regex)).returncode == 0, "it is RE2 that was missing"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["uvloop", "bcc", "nftables"])
def test_without(library: str) -> None:
    """Every module of the gateway can be read (where it is used: tests/interop/test_service.py, netns/whole)."""
    done = call(library, "check", "-c", str(ROOT / "examples/home.json"))
    assert done.returncode == 0, done.stderr
    assert call("msgspec", "check", "-c", str(ROOT / "examples/home.json")).returncode != 0, "the blocker blocks"
