"""The host of a demo is as it was: nft and ip rules, routes, links, sysctls, listeners, the BPF of its root group.

Other programs change the machine meanwhile, so the host is one of our own: a network, mount and control group
namespace. What a network namespace does not hold (sysctls outside ``net``) is compared but for counters.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.lab.cgroup import root

ROOT = Path(__file__).resolve().parents[3]
INSIDE = """
import json, os, subprocess, sys
from pathlib import Path
from gateway.lab.cgroup import root
from gateway.lab.links import programs
from gateway.lab.snapshot import COMMANDS, steady
def seen():
    found = {name: subprocess.run(["sh", "-c", words], capture_output=True, text=True, check=True).stdout
             for name, words in COMMANDS.items()}
    found["sysctls"] = "\\n".join(line for line in found["sysctls"].splitlines() if steady(line))
    found["listeners"] = subprocess.run(["ss", "-Haln"], capture_output=True, text=True, check=True).stdout
    found["listeners"] = "\\n".join(l for l in found["listeners"].splitlines() if l.split()[0] in ("tcp", "udp", "raw"))
    found["bpf"] = "\\n".join(programs(root()))
    found["groups"] = "\\n".join(sorted(f.name for f in root().iterdir() if f.is_dir()))
    found["namespaces"] = "\\n".join(sorted(os.listdir("/run/netns")))
    return found
subprocess.run("ip link set lo up; nft add table inet theirs; ip rule add pref 77 lookup 77", shell=True, check=True)
before = seen()
demo = subprocess.run([sys.executable, "-m", "gateway", "demo", "--json"], capture_output=True, text=True)
print(json.dumps({"demo": json.loads(demo.stdout or "{}"), "told": demo.stderr, "before": before, "after": seen()}))
"""
ENTER = """
set -e
umount -l "$1"
mount -t cgroup2 none "$1"
for folder in /run/gateway-lab /run/netns /run/gateway; do mkdir -p $folder; mount -t tmpfs none $folder; done
exec "$2" -c "$3"
"""


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.xdist_group("demo")
def test_the_host_is_as_it_was() -> None:
    group = root() / f"gateway-host-{os.getpid()}"
    group.mkdir()
    try:
        words = [
            "unshare",
            "--net",
            "--mount",
            "--cgroup",
            "sh",
            "-c",
            ENTER,
            "sh",
            str(root()),
            sys.executable,
            INSIDE,
        ]
        join = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *words]
        done = subprocess.run(join, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
    finally:
        group.rmdir()
    assert report["demo"].get("ok"), report["told"]
    before, after = report["before"], report["after"]
    assert "theirs" in before["nft"]
    assert "77:" in before["rules"] or '"priority":77' in before["rules"]
    # A kernel module that is loaded on first use brings names; it changes no value that was there.
    names = {line.partition(" = ")[0] for line in before["sysctls"].splitlines()}
    after["sysctls"] = "\n".join(line for line in after["sysctls"].splitlines() if line.partition(" = ")[0] in names)
    assert after == before
