"""The Debian package in a fresh Debian: installed, used, upgraded, removed, purged; and what lintian says of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from tests.debian import CHECKOUT, INSTALL, bare, build, builder, field, inside, ready

from .conftest import NEXT

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("bootstrap")]
BOOKS = ("var/lib/dpkg", "var/lib/apt", "var/cache", "var/log", "root/package")
"""What keeps account of each package that was ever there."""
RUN = """
cd /run
gateway run --minimal -c /etc/gateway/plain.json --instance smoke >/run/said 2>&1 &
for _ in $(seq 100); do gateway status --instance smoke >/run/status 2>/dev/null && break; sleep 0.1; done
gateway reload --instance smoke
kill $!; wait $!
cat /run/status /run/said; rm /run/status /run/said
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, package: Path, rebuilt: Path) -> Iterator[Path]:
    """With all that the package depends on, and both packages in /root/package."""
    made = bare(tmp_path_factory.mktemp("debian"))
    (made / "root/package").mkdir()
    for archive in (package, rebuilt):
        shutil.copy(archive, made / "root/package")
    ready(made, "apt-get", "-qq", "update")
    ready(made, *INSTALL, "satisfy", field(package, "Depends"))
    yield made
    shutil.rmtree(made)


def files(tree: Path) -> dict[str, str]:
    """What every file, link and folder of it is."""
    found = {}
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree))
        if not name.startswith(BOOKS):
            status = path.lstat()
            held = ""
            if path.is_symlink():
                held = str(path.readlink())
            elif path.is_file():
                held = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} {held}"
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def test_a_life(tree: Path, package: Path, rebuilt: Path) -> None:
    before = files(tree)
    archive = f"/root/package/{package.name}"
    ready(tree, *INSTALL, "install", archive)
    new = differences(before, files(tree))
    assert "etc/systemd/system/multi-user.target.wants/gateway.service" in new, "it starts once there is something"
    assert not [name for name in new if name.startswith(("run/", "var/lib/gateway"))], "and nothing was started"
    assert list((tree / "etc/gateway").iterdir()) == []
    assert ready(tree, "gateway", "version").startswith(f"gateway version {__version__}\n")
    for example in sorted((tree / "usr/share/doc/gateway-router/examples").iterdir()):
        ready(tree, "gateway", "check", "-c", f"/{example.relative_to(tree)}")
    refused = inside(tree, "gateway", "run", "-C", "/etc/gateway")
    assert refused.returncode != 0, "no configuration is no gateway"
    # Its own library, and none of the machine's.
    origin = (
        "import sys; sys.path.insert(0, '/usr/lib/gateway'); import cryptography, msgspec, uvloop, re2, gateway.box"
    )
    loaded = f"{origin}; print(cryptography.__file__, msgspec.__file__, uvloop.__file__, re2.__file__)"
    places = ready(tree, "python3", "-I", "-c", loaded).split()
    assert all(place.startswith("/usr/lib/gateway/") for place in places), places

    inbound = {"type": "mixed", "listen": "127.0.0.1", "listen_port": 1080}
    (tree / "etc/gateway/plain.json").write_text(json.dumps({"inbounds": [inbound]}))
    said = ready(tree, "unshare", "--net", "sh", "-c", RUN)
    assert "running" in said
    assert "on disk " in said
    assert "in memory " in said
    assert not (tree / "run/gateway/smoke").exists()

    ready(tree, *INSTALL, "install", f"/root/package/{rebuilt.name}")
    assert field_of(tree, "Version") == NEXT
    assert (tree / "etc/gateway/plain.json").exists()
    ready(tree, "gateway", "check", "-C", "/etc/gateway")

    (tree / "var/lib/gateway/main").mkdir(parents=True)
    ready(tree, *INSTALL, "remove", "gateway-router")
    assert (tree / "etc/gateway/plain.json").exists(), "removed is not purged"
    assert not (tree / "usr/lib/gateway").exists(), "no bytecode is left"
    ready(tree, *INSTALL, "purge", "gateway-router")
    left = differences(before, files(tree))
    assert left == [], left[:20]


def field_of(tree: Path, name: str) -> str:
    return ready(tree, "dpkg-query", "-W", f"-f=${{{name}}}", "gateway-router")


def test_debian_13(tmp_path: Path) -> None:
    """Built there, for its Python, with its compilers."""
    tree = builder(tmp_path, "trixie")
    ready(tree, *INSTALL, "install", f"/{build(tree).relative_to(tree)}")
    assert "Python 3.13" in ready(tree, "gateway", "version")
    ready(tree, "gateway", "check", "-c", "/usr/share/doc/gateway-router/examples/home.json")
    (tree / "etc/gateway/plain.json").write_text('{"outbounds": [{"type": "direct"}]}')
    assert "in memory " in ready(tree, "unshare", "--net", "sh", "-c", RUN)
    ready(tree, *INSTALL, "purge", "gateway-router")
    assert not [place for place in ("etc/gateway", "usr/lib/gateway") if (tree / place).exists()]
    shutil.rmtree(tree)


def test_lintian_finds_nothing(package: Path) -> None:
    (changes,) = package.parent.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--tag-display-limit", "0", "--allow-root", changes],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


def test_it_is_for_both_machines(package: Path) -> None:
    assert field(package, "Package") == "gateway-router"
    control = (CHECKOUT / "packaging/debian/control").read_text()
    assert "\nArchitecture: amd64 arm64\n" in control
    changelog = (CHECKOUT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"gateway-router ({__version__}) ")
    assert field(package, "Version") == __version__
