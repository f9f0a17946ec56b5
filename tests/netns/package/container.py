"""A Debian tree whose systemd is process 1, on a lab's host: a router's machine but for its kernel and its boot."""

from __future__ import annotations

import shlex
from pathlib import Path

from gateway.lab.host import Host
from gateway.lab.process import Result
from tests.netns.whole.conftest import until

PACKAGES = ("systemd", "procps", "iproute2")
BOOT = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for folder in run tmp dev; do mount -t tmpfs tmpfs $folder; done
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/net dev/shm
mknod dev/net/tun c 10 200
pivot_root . mnt
umount -l /mnt
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
"""
"""Its cgroups are its own: the lab's of this program is their root. Its network is the host's. What is left of the
kernel's parameters is not its to change (systemd would raise some of the whole machine's)."""
NAMESPACES = ("--mount", "--pid", "--cgroup", "--uts", "--ipc")


class Container:
    """Boots ``tree``, which has ``PACKAGES``. To its service it is what ``guest.Guest`` is."""

    gap = 2.0

    def __init__(self, host: Host, tree: Path, package: str, rebuilt: str) -> None:
        self.host = host
        self.take = f"apt-get -qy install {package}"
        self.renew = f"apt-get -qy install {rebuilt}"
        self._process = host.popen(["unshare", *NAMESPACES, "--fork", "--kill-child", "sh", "-c", BOOT, "sh", tree])
        assert until(self._boots, 30), self._process.told()

    def _boots(self) -> bool:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        assert self._process.running, self._process.told()
        self._pid = children.read_text().strip()
        return bool(self._pid) and self.run("systemctl is-active multi-user.target").out == "active\n"

    def run(self, text: str) -> Result:
        """By its shell, to the end."""
        words = ["nsenter", "-t", self._pid, *NAMESPACES, "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
                 "DEBIAN_FRONTEND=noninteractive", "sh", "-c", text]  # fmt: skip
        return self.host.run(words, timeout=120)

    def ready(self, text: str) -> str:
        """As ``run``, and it has to succeed. What it printed."""
        said = self.run(text)
        log = "journalctl -u gateway --no-pager | tail -40"
        assert said.ok, f"{text}: {said}\n{self.run(log).out}"
        return said.out.strip()

    def write(self, name: str, text: str) -> None:
        self.ready(f"printf '%s\\n' {shlex.quote(text)} >{name}")

    def close(self) -> None:
        self._process.kill()
