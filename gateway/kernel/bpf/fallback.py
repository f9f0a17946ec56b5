"""The loader for hosts without BTF or libbpf: BCC compiles ``process.bpf.c`` at run time, bpf(2) does the rest.

The program then asks nothing but the kernel's stable helpers: real uid and gid, process, socket. It judges no path, no
name and no supplementary group, so that where a plan asks for them sockets are UNKNOWN and userspace looks them up.
Maps, programs and links are held by this process alone, like those of the CO-RE loader.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gateway.core.errors import KernelError
from gateway.kernel.bpf import record
from gateway.kernel.bpf.syscall import Map, close, create_map, link_cgroup, load_program
from gateway.kernel.shipped import folder

SOURCE = "process.bpf.c"
PYTHONS = (sys.executable, "/usr/bin/python3")
"""Debian's module is Debian's Python's; a virtual environment may not see it."""
TIMEOUT = 120.0
"""Seconds; a compilation takes 0.2 s on a desktop, some seconds on a small router."""
CGROUP_SOCK, CGROUP_SOCK_ADDR = 9, 18  # enum bpf_prog_type
PROGRAMS = {
    "sock_create": (CGROUP_SOCK, 2),
    "connect4": (CGROUP_SOCK_ADDR, 10),
    "connect6": (CGROUP_SOCK_ADDR, 11),
    "sendmsg4": (CGROUP_SOCK_ADDR, 14),
    "sendmsg6": (CGROUP_SOCK_ADDR, 15),
}
"""Program -> enum bpf_prog_type, enum bpf_attach_type."""


class Compiled:
    """As ``loader.Object`` once loaded: maps and attachments, all of which ``close`` undoes, any number of times.

    ``without`` names programs that are not loaded. Raises KernelError where there is no BCC, where it cannot compile,
    and what the kernel refuses.
    """

    def __init__(self, without: frozenset[str] = frozenset()) -> None:
        self._maps: dict[str, Map] = {}
        self._programs: dict[str, int] = {}
        self._links: list[int] = []
        try:
            for name, shape in record.MAPS.items():
                self._maps[name] = create_map(name, *shape)
            wanted = [name for name in PROGRAMS if name not in without]
            for name, code in compiled(wanted, {name: made.fd for name, made in self._maps.items()}).items():
                self._programs[name] = load_program(name, *PROGRAMS[name], code)
        except BaseException:
            self.close()
            raise

    def map(self, name: str) -> Map:
        return self._maps[name]

    def attach_cgroup(self, name: str, cgroup_fd: int) -> None:
        """Attach program ``name`` beside whatever is attached there already. Raises KernelError."""
        # A link, not BCC's BPF_PROG_ATTACH: that one stays on the cgroup after a crash.
        self._links.append(link_cgroup(name, self._programs[name], cgroup_fd, PROGRAMS[name][1]))

    @property
    def links(self) -> tuple[int, ...]:
        """Descriptors of the attachments: whoever has copies of them keeps the programs attached."""
        return tuple(self._links)

    def close(self) -> None:
        close(self._links)
        close([*(made.fd for made in self._maps.values()), *self._programs.values()])
        self._maps, self._programs = {}, {}


def compiled(names: list[str], maps: dict[str, int]) -> dict[str, bytes]:
    """Instructions of each program, with the descriptors of its maps in them. Blocks for as long as the compiler takes.
    Raises KernelError with what the compiler said first."""
    source = folder("bpf", SOURCE) / SOURCE
    flags = ["-DBCC", f"-I{source.parent}", *(f"-DFD_{name}={fd}" for name, fd in maps.items())]
    said = "no Python to run it"
    for python in dict.fromkeys(PYTHONS):
        command = [python, "-I", str(Path(__file__).with_name("compiler.py")), str(source), *flags, "--", *names]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, cwd="/")
        except (OSError, subprocess.TimeoutExpired) as error:
            said = str(error)
            continue
        if done.returncode == 0:
            return {name: bytes.fromhex(code) for name, code in json.loads(done.stdout).items()}
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        said = next((line for line in lines if "error:" in line), lines[-1])
    raise KernelError(f"compile {SOURCE} with BCC", 0, said)
