"""What is installed is whole: a wheel built from a copy of the checkout brings rulesets and BPF objects along."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[3]
ASK = """
import json, sys
from gateway.kernel.nft.library import folder
from gateway.kernel.bpf.process import OBJECT
print(json.dumps([str(folder()), sorted(path.name for path in folder().iterdir()), str(OBJECT), OBJECT.is_file()]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    for name in ("gateway", "nft", "bpf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp), str(source))
    (found,) = tmp.glob("*.whl")
    return found


def pip(*words: str, python: str = sys.executable) -> None:
    done = subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def asked(*command: str, path: str = "") -> list[object]:
    done = subprocess.run(
        [*command, "-c", ASK], capture_output=True, text=True, cwd="/", env={"PYTHONPATH": path} if path else {}
    )
    assert done.returncode == 0, done.stderr
    answer: list[object] = json.loads(done.stdout)
    return answer


def test_the_wheel_holds_all_that_is_read_at_run_time(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.rpartition("/")[2] for name in names if "/share/gateway/nft/" in name} == {
        path.name for path in (ROOT / "nft").glob("*.nft")
    }
    assert {name.rpartition("/")[2] for name in names if "/share/gateway/bpf/" in name} == {
        path.name for path in (ROOT / "bpf").glob("*.[ch]")
    }
    for suffix in (".o", ".json"):
        wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "gateway").rglob(f"*{suffix}")}
        assert wanted
        assert wanted <= set(names)


def test_installed_into_a_folder(wheel: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--target", str(tmp_path), str(wheel))
    found, files, compiled, there = asked(sys.executable, path=str(tmp_path))
    assert found == str(tmp_path / "share/gateway/nft")
    assert files == ["base.nft", "guard.nft", "steer.nft", "tun.nft"]
    assert str(compiled).startswith(str(tmp_path))
    assert there


def test_installed_into_an_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    python = str(tmp_path / "bin/python")
    pip("--python", python, "install", "--no-deps", str(wheel))
    # The dependencies of this environment stand behind its own packages.
    outside = ":".join(path for path in sys.path if path.endswith("site-packages"))
    found, files, _, there = asked(python, path=outside)
    assert found == str(tmp_path / "share/gateway/nft")
    assert files == ["base.nft", "guard.nft", "steer.nft", "tun.nft"]
    assert there
