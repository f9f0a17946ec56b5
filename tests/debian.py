"""A fresh Debian in a folder, to install into: debootstrap's, made once and kept in the cache.

It is entered by chroot in a mount namespace of its own: what is mounted there goes with the program, and the host's
packages and services are out of reach. The network is the host's, since packages come from the mirror.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from gateway.lab import peer
from tests import peers

CHECKOUT = Path(__file__).resolve().parents[1]
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Mounts vanish with the namespace; the host's certificates are those that this machine's network may need.
ENTER = f"""
set -e
mount -t proc proc "$0/proc"
mount --rbind /sys "$0/sys"
mount --rbind /dev "$0/dev"
mount --bind /etc/resolv.conf "$0/etc/resolv.conf"
[ ! -e {CERTIFICATES} ] || mount --bind {CERTIFICATES} "$0/etc/host-certificates.crt"
exec chroot "$0" "$@"
"""
INSTALL = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends")


def bare(folder: Path, suite: str = SUITE) -> Path:
    """``folder/tree``: a copy of a fresh Debian whose package lists are still to be fetched."""
    kept = peer.cache() / "peers" / f"tree-{suite}-{peer.release()}.tar"
    with peer.locked(kept):
        if not kept.exists():
            peer.say("debootstrap: a bare Debian tree, about a minute")
            program = peers.path("debootstrap")
            data = program.parent.parent / "tree/usr/share/debootstrap"
            # This machine's own package is used where it is installed.
            environment = {"DEBOOTSTRAP_DIR": str(data)} if data.exists() else {}
            made = folder / "made"
            command = [program, "--variant=minbase", f"--keyring={KEYRING}", suite, made, MIRROR]
            peer.call(command, folder, environment)
            peer.call(["tar", "--one-file-system", "-C", made, "-cf", f"{kept}.part", "."], folder)
            shutil.rmtree(made)
            os.replace(f"{kept}.part", kept)
    tree = folder / "tree"
    tree.mkdir()
    peer.call(["tar", "-C", tree, "-xf", kept], folder)
    for name in ("resolv.conf", "host-certificates.crt"):
        (tree / "etc" / name).unlink(missing_ok=True)
        (tree / "etc" / name).touch()
    security = f"deb http://deb.debian.org/debian-security {suite}-security main\n"
    (tree / "etc/apt/sources.list").write_text(f"deb {MIRROR} {suite} main\n{security}")
    return tree


def command(tree: Path, *words: str) -> list[str]:
    """What runs ``words`` in the tree with a bare environment; by exec alone, so that it is one process."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C"}
    # Where a machine reaches PyPI is told by its environment.
    environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment["PIP_CERT"] = "/etc/host-certificates.crt"
    # Nothing else of it: told to compile elsewhere, as tests are, dpkg would leave empty folders behind.
    cleared = ["env", "-i", *(f"{name}={value}" for name, value in environment.items())]
    return [*cleared, "unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, str(tree), *words]


def inside(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``words`` in the tree."""
    return subprocess.run(command(tree, *words), text=True, capture_output=True, timeout=1200, check=False)


def ready(tree: Path, *words: str) -> str:
    """As ``inside``, and it has to succeed. Its output."""
    done = inside(tree, *words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


def package(folder: Path) -> Path:
    """The Debian package of this checkout, by ``./gw package``."""
    done = subprocess.run(
        [CHECKOUT / "gw", "package", folder], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(done.stdout.split()[-1])


def field(package: Path, name: str) -> str:
    """Of its control file."""
    return subprocess.run(["dpkg-deb", "-f", package, name], capture_output=True, text=True, check=True).stdout.strip()


def builder(folder: Path, suite: str) -> Path:
    """A Debian of its own to build the package in: its tree, with this checkout in /opt/gateway."""
    tree = bare(folder, suite)
    for name in ("gateway", "bpf", "nft", "docs", "examples", "packaging"):
        shutil.copytree(
            CHECKOUT / name, tree / "opt/gateway" / name, ignore=shutil.ignore_patterns("__pycache__", "*.o")
        )
    for name in ("README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, tree / "opt/gateway")
    (wanted,) = re.findall("^Build-Depends: (.*)$", (CHECKOUT / "packaging/debian/control").read_text(), re.MULTILINE)
    ready(tree, "apt-get", "-qq", "update")
    ready(tree, *INSTALL, "satisfy", f"{wanted}, build-essential, python3-pip")
    return tree


def build(tree: Path, version: str = "") -> Path:
    """The package that a ``builder`` makes; its path in the tree begins with /root/package."""
    return tree / ready(tree, "/opt/gateway/packaging/build", "/root/package", version).split()[-1].lstrip("/")
