"""A Debian with systemd in QEMU, between two taps of a lab's host: what a router's machine is to its service.

Without KVM, so that it runs wherever QEMU does. The disk is made once from debootstrap's tree and kept in the cache;
each guest writes to a copy that goes with it. A program in the guest runs what it is told over a serial line; QEMU's
monitor (QMP) pulls and plugs its network cards.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from gateway.lab import peer
from gateway.lab.host import Host
from gateway.lab.lab import Lab
from gateway.lab.process import Result
from tests import peers
from tests.debian import INSTALL, bare, ready
from tests.sshd import client

PACKAGES = (
    "systemd-sysv", "udev", "linux-image-cloud-amd64", "initramfs-tools", "iproute2", "procps", "curl", "python3",
    "openssh-server", "network-manager", "connman", "ifupdown", "dnsmasq-base", "libbpf1", "netbase", "nftables",
    "python3-nftables",
)  # fmt: skip
"""Those from dnsmasq-base on are what the package depends on: the guest reaches no mirror. Nobody configures a link
unless a test starts who does."""
EDITION = 5
"""Of what is below; another one makes another disk."""
SIZE = "2G"
LISTS = "{ mountpoint -q /mnt || mount -o ro /dev/vdb /mnt; } && apt-get -q update"
BOOT, WORD = 240.0, 300.0
"""Seconds for a boot, and for one word, on a machine that emulates and has other work."""
MACS = {"lan0": "52:54:00:00:53:01", "wan0": "52:54:00:00:53:02"}
AGENT = """#!/usr/bin/python3
import json, subprocess, tty
line = open("/dev/ttyS1", "r+b", buffering=0)
tty.setraw(line)
line.write(b'{"boot": true}\\n')
text = b""
while True:
    text += line.read(4096)
    while b"\\n" in text:
        word, _, text = text.partition(b"\\n")
        done = subprocess.run(["sh", "-c", json.loads(word)], capture_output=True, text=True, errors="replace")
        told = json.dumps([done.returncode, done.stdout, done.stderr]).encode() + b"\\n"
        while told:
            told = told[line.write(told):]
"""
UNIT = """[Unit]
Description=What the test says
[Service]
ExecStart=/usr/local/sbin/agent
Restart=always
[Install]
WantedBy=multi-user.target
"""
SETUP = r"""
set -e
echo guest >/etc/hostname
echo '/dev/vda / ext4 defaults 0 1' >/etc/fstab
printf 'virtio_net\nvirtio_blk\n' >>/etc/initramfs-tools/modules
systemctl enable agent.service
systemctl disable NetworkManager.service connman.service systemd-networkd.service networking.service
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    systemd-timesyncd.service serial-getty@ttyS1.service getty@tty1.service
printf 'deb [trusted=yes] file:/mnt ./\n' >/etc/apt/sources.list
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
update-initramfs -u
"""


class Said(NamedTuple):
    code: int
    out: str
    err: str


class Disk(NamedTuple):
    """A root file system, and what boots it."""

    image: Path
    kernel: Path
    ram: Path


def disk(suite: str) -> Disk:
    """Made on first use, some three minutes."""
    kept = peer.cache() / "peers" / f"guest-{suite}-{peer.release()}-{EDITION}"
    found = Disk(kept / "disk.img", kept / "vmlinuz", kept / "initrd.img")
    with peer.locked(kept):
        if not (kept / "complete").exists():
            peer.say(f"a guest for QEMU with Debian {suite}: some three minutes")
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            folder = Path(tempfile.mkdtemp(prefix="gw"))
            try:
                _make(bare(folder, suite), found)
            finally:
                shutil.rmtree(folder)
            (kept / "complete").touch()
    return found


def _make(tree: Path, into: Disk) -> None:
    ready(tree, "apt-get", "-qq", "update")
    ready(tree, *INSTALL, "install", *PACKAGES)
    peer.script(tree / "usr/local/sbin/agent", "")
    (tree / "usr/local/sbin/agent").write_text(AGENT)
    (tree / "etc/systemd/system/agent.service").write_text(UNIT)
    for name, mac in MACS.items():
        link = tree / f"etc/systemd/network/10-{name}.link"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.write_text(f"[Match]\nMACAddress={mac}\n[Link]\nName={name}\n")
    ready(tree, "sh", "-c", SETUP)
    (kernel,) = tree.glob("boot/vmlinuz-*")
    (ram,) = tree.glob("boot/initrd.img-*")
    shutil.copy(kernel, into.kernel)
    shutil.copy(ram, into.ram)
    image(tree, into.image, SIZE)


def image(tree: Path, file: Path, size: str) -> None:
    """An ext4 file system with what is in ``tree``."""
    peer.call(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, file, size], tree)


def repository(packages: list[Path], file: Path) -> None:
    """A disk that apt reads: packages and their list."""
    folder = Path(tempfile.mkdtemp(prefix="gw"))
    try:
        for package in packages:
            shutil.copy(package, folder)
        (folder / "Packages").write_text(peer.call(["dpkg-scanpackages", "--multiversion", "."], folder))
        image(folder, file, "64M")
    finally:
        shutil.rmtree(folder)


class Guest:
    """Runs on the lab's host ``gateway``, whose interfaces lan0 and wan0 become its network cards."""

    gap = 5.0
    take = f"{LISTS} && apt-get -qy install gateway-router=0.1.0"
    renew = f"{LISTS} && apt-get -qy upgrade"

    def __init__(self, lab: Lab, packages: list[Path], suite: str) -> None:
        self.host = lab.host("gateway")
        self.folder = Path(tempfile.mkdtemp(prefix="gw"))
        found = disk(suite)
        repository(packages, self.folder / "packages.img")
        for name in MACS:
            self._wire(name)
        program = peers.path("qemu-system-x86_64")
        data = program.parent.parent / "tree/usr/share"
        places = [word for name in ("qemu", "seabios") for word in ("-L", data / name)] if data.exists() else []
        words: list[Any] = [
            program, *places, "-machine", "pc,accel=tcg", "-cpu", "qemu64", "-smp", "2", "-m", "1024",
            "-display", "none", "-nodefaults", "-no-user-config", "-kernel", found.kernel, "-initrd", found.ram,
            "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=1 systemd.show_status=0",
            "-drive", f"file={found.image},if=virtio,format=raw,snapshot=on",
            "-drive", f"file={self.folder}/packages.img,if=virtio,format=raw,readonly=on",
            "-serial", f"file:{self.folder}/console", "-serial", f"unix:{self.folder}/agent,server=on,wait=off",
            "-qmp", f"unix:{self.folder}/monitor,server=on,wait=off",
        ]  # fmt: skip
        for name in MACS:
            words += ["-netdev", f"tap,id={name},ifname=tap-{name},script=no,downscript=no", "-device", card(name)]
        self.process = self.host.popen(words)
        self.started = time.monotonic()
        self._line = self._connect("agent")
        self._monitor = self._connect("monitor")
        self._text = b""
        self._monitor_text = b""
        self._answer()
        self.monitor("qmp_capabilities")
        self.booted()

    def _wire(self, name: str) -> None:
        """A cable, which looks into no packet."""
        for words in (
            f"tuntap add tap-{name} mode tap",
            f"link add br-{name} type bridge mcast_snooping 0",
            f"link set {name} master br-{name}",
            f"link set tap-{name} master br-{name}",
            f"link set tap-{name} up",
            f"link set br-{name} up",
        ):
            self.host.run(["ip", *words.split()], check=True)

    def _connect(self, name: str) -> socket.socket:
        end = time.monotonic() + 20
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self.folder / name))
                return sock
            except OSError:
                sock.close()
                assert self.process.running, self.process.told()
                assert time.monotonic() < end, "QEMU does not listen"
                time.sleep(0.1)

    def booted(self, seconds: float = BOOT) -> float:
        """Wait for the guest's first word. Seconds that it took."""
        begun = time.monotonic()
        while True:
            told = self._hear(seconds)
            if isinstance(told, dict) and "boot" in told:
                return time.monotonic() - begun

    def _hear(self, seconds: float) -> Any:
        self._line.settimeout(seconds)
        while b"\n" not in self._text:
            try:
                more = self._line.recv(1 << 16)
            except TimeoutError:
                raise AssertionError(f"the guest says nothing\n{self.console()}") from None
            assert more, self.process.told()
            self._text += more
        line, _, self._text = self._text.partition(b"\n")
        return json.loads(line)

    def run(self, text: str, seconds: float = WORD) -> Said:
        """By its shell, to the end."""
        self._line.sendall(json.dumps(text).encode() + b"\n")
        return Said(*self._hear(seconds))

    def ready(self, text: str) -> str:
        """As ``run``, and it has to succeed. What it printed."""
        said = self.run(text)
        assert said.code == 0, f"{text}: {said}\n{self.run('journalctl -b -u gateway --no-pager | tail -40').out}"
        return said.out.strip()

    def write(self, name: str, text: str) -> None:
        self.ready(f"cat >{name} <<'END'\n{text}\nEND")

    def admit(self) -> None:
        """Whoever has the key of this test, as root."""
        self._client = client(self.folder)
        self.ready("mkdir -p -m 700 /root/.ssh")
        self.write("/root/.ssh/authorized_keys", (self.folder / "user.pub").read_text())

    def ssh(self, host: Host, address: str, command: str) -> Result:
        """From a host of the lab, by a connection of its own."""
        return host.run([*self._client, address, command], timeout=60)

    def reboot(self) -> float:
        """Seconds until it is back."""
        self._line.sendall(json.dumps("systemctl reboot").encode() + b"\n")
        return self.booted()

    def console(self) -> str:
        return (self.folder / "console").read_text(errors="replace")[-3000:]

    # -- its network cards

    def monitor(self, command: str, **arguments: Any) -> None:
        """Raises AssertionError where QEMU refuses."""
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        told = self._answer()
        assert "return" in told, told

    def _answer(self) -> dict[str, Any]:
        """But for what QEMU tells unasked."""
        self._monitor.settimeout(20)
        while True:
            while b"\n" not in self._monitor_text:
                more = self._monitor.recv(1 << 16)
                assert more, self.process.told()
                self._monitor_text += more
            line, _, self._monitor_text = self._monitor_text.partition(b"\n")
            told: dict[str, Any] = json.loads(line)
            if "event" not in told:
                return told

    def carrier(self, name: str, up: bool) -> None:
        """As a cable that is pulled and plugged."""
        self.monitor("set_link", name=f"card-{name}", up=up)

    def unplug(self, name: str) -> None:
        """The card, as one at USB."""
        self.monitor("device_del", id=f"card-{name}")

    def plug(self, name: str) -> None:
        driver, *words = card(name).split(",")
        self.monitor("device_add", driver=driver, **dict(word.split("=", 1) for word in words))

    def close(self) -> None:
        for sock in (self._line, self._monitor):
            sock.close()
        if self.process.running:
            os.kill(self.process.pid, 15)
            self.process.wait(20)
        shutil.rmtree(self.folder)
        for name in MACS:
            for device in (f"tap-{name}", f"br-{name}"):
                subprocess.run(["ip", "-n", self.host.namespace, "link", "del", device], check=False)


def card(name: str) -> str:
    return f"virtio-net-pci,netdev={name},mac={MACS[name]},id=card-{name},romfile="
