"""All of a host that a gateway could have changed, as text to be compared line by line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from gateway.lab.host import Host
from gateway.lab.links import links, programs

UNSTEADY = (
    "fs.aio-nr", "fs.dentry-state", "fs.file-nr", "fs.inode-nr", "fs.inode-state", "fs.mqueue.",
    "fs.quota.", "kernel.ns_last_pid", "kernel.perf_event_max_sample_rate", "kernel.pty.nr", "kernel.random.",
    "kernel.tainted", "net.netfilter.nf_conntrack_count", "stable_secret", "tcp_fastopen_key",
)  # fmt: skip
"""Sysctls that the kernel itself counts, draws or tunes."""
COMMANDS = {
    "nft": "nft -j list ruleset",
    "rules": "ip -j -4 rule; ip -j -6 rule",
    "routes": "(ip -4 route show table all; ip -6 route show table all) | sed 's/ expires [0-9]*sec//'",
    "addresses": "ip -br addr | sed 's/@if[0-9]*//'",
    "sysctls": "sysctl -a 2>/dev/null",
}


def snapshot(host: Host) -> dict[str, str]:
    """Name of a part -> its lines. BPF is that of this host's control groups, processes those in its network."""
    found = network(lambda words: host.run(["sh", "-c", words]).out)
    found["listeners"] = "\n".join(map(str, sorted(host.listeners())))
    inode = host.call(lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    # The groups of programs that have ended stay until the lab goes; nothing may be attached there either.
    groups = [Path(folder) for folder, _, _ in os.walk(host.group)]
    found["bpf"] = "\n".join([*links(groups, [inode]), *programs(host.group)])
    found["processes"] = "\n".join(processes(inode))
    return found


def network(shell: Callable[[str], str]) -> dict[str, str]:
    """The parts that commands tell, wherever ``shell`` runs them."""
    found = {name: shell(words) for name, words in COMMANDS.items()}
    found["sysctls"] = "\n".join(line for line in found["sysctls"].splitlines() if steady(line))
    return found


def steady(line: str) -> bool:
    name = line.partition(" = ")[0]
    return not any(part in name for part in UNSTEADY)


def processes(namespace: int) -> list[str]:
    """Number and command of every process whose network namespace has this inode."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if os.stat(folder / "ns/net").st_ino == namespace:
                    words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found.append(f"{folder.name} {words.strip()}")
            except OSError:
                continue  # it ended meanwhile
    return sorted(found)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """What is not in both, ``part: - line`` or ``part: + line``; the order of lines does not matter."""
    found = []
    for name, text in before.items():
        old, new = sorted(text.splitlines()), sorted(after[name].splitlines())
        if old != new:
            found += [f"{name}: - {line}" for line in old if line not in new]
            found += [f"{name}: + {line}" for line in new if line not in old]
            found += [] if set(old) != set(new) else [f"{name}: lines repeat otherwise"]
    return found
