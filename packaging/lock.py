"""Writes ``requirements.txt``: of every library that the gateway needs at run time one version, and the wheels of it
for each machine that a package is made for. ``./gw lock`` after a change of pyproject.toml.

Below each comment line, which names a wheel, stands its SHA-256; pip takes no other file. What has no wheel for a
target is told on standard error, and must be an extra of pyproject.toml.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
FILE = HERE / "requirements.txt"
HEAD = "# Written by `./gw lock` (packaging/lock.py): pip install --require-hashes --only-binary=:all: -r this.\n"
PYTHONS = ("3.11", "3.13")
"""Those of Debian 12 and 13."""
GLIBC = ("2_36", "2_34", "2_31", "2_28", "2_26", "2_17", "2_5")
"""Releases of glibc that wheels are named by, up to Debian 12's."""
MUSL = ("1_2", "1_1")


class Target(NamedTuple):
    python: str
    machine: str
    libc: str

    @property
    def platforms(self) -> list[str]:
        """Tags that fit, the best first (PEP 600, PEP 656)."""
        if self.libc == "musl":
            return [f"musllinux_{release}_{self.machine}" for release in MUSL]
        named = [f"manylinux_{release}_{self.machine}" for release in GLIBC]
        return [*named, f"manylinux2014_{self.machine}", f"manylinux1_{self.machine}"]


TARGETS = tuple(Target(*one) for one in product(PYTHONS, ("x86_64", "aarch64"), ("glibc", "musl")))


class Wheel(NamedTuple):
    name: str
    version: str
    file: str
    sha256: str


def requirements(*, extras: bool = True) -> list[str]:
    """Those of pyproject.toml at run time."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    optional = {name: words for name, words in project["optional-dependencies"].items() if name != "dev"}
    return [*project["dependencies"], *(word for words in optional.values() for word in words if extras)]


def resolve(target: Target, wanted: Sequence[str], constraints: Path | None = None) -> list[Wheel]:
    """The wheels that pip would install there, from the index that it is configured for. Raises CalledProcessError with
    what it says where one is missing."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        platforms = [word for tag in target.platforms for word in ("--platform", tag)]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), "--only-binary=:all:", "--target", folder]
        command += ["--implementation", "cp", "--python-version", target.python, *platforms]
        command += ["-c", str(constraints)] if constraints else []
        subprocess.run([*command, *wanted], check=True, capture_output=True, text=True)
        found = json.loads(report.read_text())["install"]
    return sorted(_wheel(item) for item in found)


def _wheel(item: dict[str, dict[str, object]]) -> Wheel:
    place, about = item["download_info"], item["metadata"]
    archive = place["archive_info"]
    assert isinstance(archive, dict)
    file = str(place["url"]).rpartition("/")[2]
    return Wheel(str(about["name"]).lower(), str(about["version"]), file, str(archive["hash"]).removeprefix("sha256="))


def read(file: Path = FILE) -> list[Wheel]:
    """The table."""
    found, names, version, name = [], [], "", ""
    for line in file.read_text().splitlines():
        words = line.rstrip("\\").split()
        if line.startswith("#   "):
            names.append(words[1])
        elif words and "==" in words[0]:
            name, _, version = words[0].partition("==")
        elif words and words[0].startswith("--hash=sha256:"):
            found.append(Wheel(name, version, names.pop(0), words[0].removeprefix("--hash=sha256:")))
    return found


def text(wheels: Sequence[Wheel]) -> str:
    """The file's text."""
    return HEAD + "".join(_entries(sorted(set(wheels))))


def _entries(wheels: Sequence[Wheel]) -> Iterator[str]:
    for name, version in dict.fromkeys((one.name, one.version) for one in wheels):
        mine = [one for one in wheels if one.name == name]
        yield "".join(f"#   {one.file}\n" for one in mine)
        yield " \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{one.sha256}" for one in mine)]) + "\n"


def main() -> int:
    hard, found = requirements(extras=False), list[Wheel]()
    asked = [hard, *([word] for word in requirements() if word not in hard)]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        for target in TARGETS:
            # What was found first decides, so that there is one version of each.
            constraints.write_text("".join(f"{one.name}=={one.version}\n" for one in set(found)))
            for wanted in asked:
                try:
                    found += resolve(target, wanted, constraints)
                except subprocess.CalledProcessError:
                    print(f"{'-'.join(target)}: no wheels for {', '.join(wanted)}", file=sys.stderr)
    FILE.write_text(text(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
