"""Which other program configures an interface: NetworkManager, systemd-networkd, netifd, ifupdown, or a DHCPv4 client.

Told by what they leave for others to read, and by command lines of processes. Every network namespace sees the same
files, and may have interfaces of the same index and name: a daemon counts where it runs in ours. Of a program that does
not run (ifupdown) that is the namespace of process 1.

::

    NetworkManager   /run/NetworkManager/devices/INDEX     [device] managed=true
    networkd         /run/systemd/netif/links/INDEX        ADMIN_STATE=configured, NETWORK_FILE=...
    netifd           /etc/config/network                   config interface, option device, option proto
    ifupdown         /run/network/ifstate                  eth0=eth0; the method in /etc/network/interfaces
    clients          /proc/PID/cmdline                     dhclient, dhcpcd, udhcpc, connmand
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from gateway.core.errors import GatewayError
from gateway.uplink.commandline import clients, program

ROOT = Path("/")
MOST_BYTES = 1 << 16
"""Of one file; the rest is not read."""
NETWORKD_UNIT = "/etc/systemd/network/00-gateway-{0}.network"
IDLE = ("", "unmanaged", "linger")
"""States of networkd in which it leaves a link alone (networkctl(1))."""

UNTOUCHED = "vmnet,vboxnet,virbr,ifb,ve-,vb-,ham,veth"
"""What connman leaves alone where nothing is said."""


class Owner(NamedTuple):
    """``process``: its number, 0 where it does not run. ``release``: a line for a shell that makes it let go."""

    program: str
    process: int
    release: str

    def __str__(self) -> str:
        return f"{self.program} (process {self.process})" if self.process else self.program


class LinkOwned(GatewayError):
    """Another program configures the interface: no DHCP client of ours is started there."""

    def __init__(self, interface: str, owner: Owner) -> None:
        super().__init__(
            f"{owner} configures {interface}, and two DHCP clients would undo each other: "
            f'write "external": true in place of "dhcp4", or make it let go: {owner.release}'
        )
        self.interface = interface
        self.owner = owner


class Process(NamedTuple):
    """``words``: its command line."""

    number: int
    words: tuple[str, ...]


def processes() -> list[Process]:
    """Those of this network namespace, as far as they can be seen. Needs no root: /proc/PID/net is a door to the
    namespace's own files, whose inode numbers no other namespace has."""
    mine = _namespace("thread-self")
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and mine and _namespace(entry.name) == mine:
            words = _read(Path(entry.path, "cmdline")).rstrip("\0").split("\0")
            if words[0]:
                found.append(Process(int(entry.name), tuple(words)))
    return found


def _namespace(process: str) -> int:
    try:
        return os.stat(f"/proc/{process}/net/dev").st_ino
    except OSError:
        return 0


def _read(path: Path) -> str:
    """Empty where it cannot be read."""
    try:
        with path.open(errors="replace") as file:
            return file.read(MOST_BYTES)
    except OSError:
        return ""


def find(interface: str, index: int, running: Sequence[Process] | None = None, root: Path = ROOT) -> Owner | None:
    """Who configures ``interface``; None where nobody does. ``running``: of ``processes``, where more than one
    interface is asked for."""
    running = processes() if running is None else running
    return next(_owners(interface, index, running, root), None)


def refuse(interface: str, index: int) -> None:
    """Raises LinkOwned where somebody else configures ``interface``."""
    owner = find(interface, index)
    if owner is not None:
        raise LinkOwned(interface, owner)


def every(names: Mapping[str, int]) -> dict[str, Owner]:
    """Who configures which of these interfaces, name to index; those of nobody are left out."""
    running = processes()
    found = {name: find(name, index, running) for name, index in names.items() if name != "lo"}
    return {name: owner for name, owner in found.items() if owner is not None}


def _owners(interface: str, index: int, running: Sequence[Process], root: Path) -> Iterator[Owner]:
    """Daemons before the clients that they may have started."""
    by_name = {program(process.words): process.number for process in running}
    name = shlex.quote(interface)
    if number := by_name.get("NetworkManager"):
        state = _read(root / f"run/NetworkManager/devices/{index}")
        if "managed=true" in state.split():
            yield Owner("NetworkManager", number, f"nmcli device set {name} managed no")
    if number := by_name.get("systemd-networkd"):
        lines = _read(root / f"run/systemd/netif/links/{index}").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        if told.get("ADMIN_STATE", "") not in IDLE and told.get("NETWORK_FILE"):
            unit, text = NETWORKD_UNIT.format(interface), f"[Match]\\nName={interface}\\n[Link]\\nUnmanaged=yes\\n"
            line = f"printf {shlex.quote(text)} > {shlex.quote(unit)} && networkctl reload"
            yield Owner("systemd-networkd", number, line)
    section = netifd(_read(root / "etc/config/network"), interface)
    if section and (number := by_name.get("netifd")):
        line = f"uci set network.{section}.proto=none && uci commit network && ifup {section}"
        yield Owner("netifd", number, line)
    if _namespace("thread-self") == _namespace("1") and interface in ifupdown(root):
        yield Owner("ifupdown", 0, f"ifdown {name}")
    for process in running:
        for kind, asked in clients(process.words):
            if interface in asked or (asked == () and _all(kind, interface, root)):
                yield Owner(kind, process.number, _end(kind, interface, process.number, root))


def _all(kind: str, interface: str, root: Path) -> bool:
    """Whether a client that was given no interface takes this one."""
    if kind == "connman":
        return not any(interface.startswith(one) for one in _blacklist(root))
    if kind == "dhcpcd":
        lines = [line.split() for line in _read(root / "etc/dhcpcd.conf").splitlines()]
        denied, allowed = (
            [one for line in lines if line[:1] == [word] for one in line[1:]]
            for word in ("denyinterfaces", "allowinterfaces")
        )
        fits = not allowed or any(fnmatchcase(interface, one) for one in allowed)
        return fits and not any(fnmatchcase(interface, one) for one in denied)
    return True


def _blacklist(root: Path) -> list[str]:
    """Of connman: beginnings of names (connman.conf(5))."""
    pairs = [line.partition("=") for line in _read(root / "etc/connman/main.conf").splitlines()]
    listed = [value for key, _, value in pairs if key.strip() == "NetworkInterfaceBlacklist"] or [UNTOUCHED]
    return [one.strip() for one in listed[-1].split(",") if one.strip()]


def _end(kind: str, interface: str, number: int, root: Path) -> str:
    name = shlex.quote(interface)
    if kind == "dhcpcd":
        return f"echo denyinterfaces {name} >> /etc/dhcpcd.conf && dhcpcd --exit {name}"
    if kind == "connman":
        names = ",".join([*_blacklist(root), interface])  # the last list is the one that counts
        text = shlex.quote(f"[General]\\nNetworkInterfaceBlacklist={names}\\n")
        return f"printf {text} >> /etc/connman/main.conf && systemctl restart connman"
    return f"kill {number}"


def netifd(text: str, device: str) -> str:
    """The section of OpenWrt's /etc/config/network that configures ``device``; "" for none."""
    section, fits, proto = "", False, ""
    for line in [*text.splitlines(), "config end"]:
        match [word.strip("'\"") for word in line.split()]:
            case ["config", *rest]:
                if section and fits and proto not in ("", "none"):
                    return section
                section, fits, proto = rest[1] if rest[:1] == ["interface"] and len(rest) > 1 else "", False, ""
            case ["option" | "list", "device" | "ifname", *names]:
                fits = fits or device in names
            case ["option", "proto", value]:
                proto = value
    return ""


def ifupdown(root: Path = ROOT) -> set[str]:
    """Interfaces that it has configured for IPv4: up, and their method is not ``manual``."""
    state = _read(root / "run/network/ifstate").split()
    state += [_read(path) for path in (root / "run/network").glob("ifstate.*")]
    up = {line.partition("=")[0].strip(): line.partition("=")[2].strip() for line in state}
    files = [root / "etc/network/interfaces", *sorted((root / "etc/network/interfaces.d").glob("*"))]
    methods = [line.split() for path in files for line in _read(path).splitlines() if line.strip().startswith("iface")]
    idle = {words[1] for words in methods if words[2:4] == ["inet", "manual"]}
    busy = {words[1] for words in methods if words[2:3] == ["inet"] and words[1] not in idle}
    return {name for name, logical in up.items() if name != "lo" and (logical or name) in busy}
