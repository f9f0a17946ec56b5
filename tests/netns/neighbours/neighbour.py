"""The rulesets that a house may have beside ours: files in rules/, and the interfaces, routes, ip rules that go with
them, as `ip` shows them on a machine that runs the real thing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .house import GUEST6, RULES, SERVER, SERVER1


@dataclass(frozen=True)
class Neighbour:
    """``guests``: the bridge of its guests and their network's first three numbers. ``firewall``: ours stands too.
    ``lines``: what it makes beside nftables; ``undo``: what takes that away again."""

    name: str
    bridge: str = "br-guest"
    network: str = "192.168.9"
    firewall: bool = True
    lines: tuple[str, ...] = ()
    undo: tuple[str, ...] = ()
    publishes: bool = False
    """It forwards a port of the uplink to its guest."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Named after the program that reads them."""
        return tuple(sorted(RULES.glob(f"{self.name}.*")))

    @property
    def tables(self) -> list[str]:
        """Family and name of each table that they make."""
        found = []
        for file in self.files:
            family = {".iptables": "ip ", ".ip6tables": "ip6 "}.get(file.suffix, "")
            sign = "*" if family else "table "
            lines = file.read_text().splitlines()
            found += [family + line.removeprefix(sign).rstrip(" {") for line in lines if line.startswith(sign)]
        return found


def _mwan3() -> tuple[str, ...]:
    lines = []
    for flag, lan, guests, gateways in (
        ("-4", "192.168.7.0/24", "192.168.9.0/24", (SERVER[4], SERVER1[4])),
        ("-6", "2001:db8:1::/64", f"{GUEST6}/64", (SERVER[6], SERVER1[6])),
    ):
        for number, (name, via) in enumerate(zip(("wan0", "wan1"), gateways, strict=True), 1):
            lines += [
                f"ip {flag} route add default via {via} dev {name} table {number}",
                f"ip {flag} route add {lan} dev br-lan table {number}",
                f"ip {flag} route add {guests} dev br-guest table {number}",
                f"ip {flag} rule add priority {1000 + number} iif {name} lookup {number}",
                f"ip {flag} rule add priority {2000 + number} fwmark {number:#x}00/0x3f00 lookup {number}",
                f"ip {flag} rule add priority {3000 + number} fwmark {number:#x}00/0x3f00 unreachable",
            ]
        lines += [
            f"ip {flag} rule add priority 2061 fwmark 0x3d00/0x3f00 blackhole",
            f"ip {flag} rule add priority 2062 fwmark 0x3e00/0x3f00 unreachable",
        ]
    return tuple(lines)


def _without(lines: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(line.replace(" add ", " del ", 1) for line in reversed(lines))


TAILSCALE = (
    "ip tuntap add tailscale0 mode tun",
    "ip addr add 100.64.0.1/32 dev tailscale0",
    "ip link set tailscale0 up",
    *(
        line
        for flag, net in (("-4", "100.64.0.0/10"), ("-6", "fd7a:115c:a1e0::/48"))
        for line in (
            f"ip {flag} rule add priority 5210 fwmark 0x80000/0xff0000 lookup main",
            f"ip {flag} rule add priority 5230 fwmark 0x80000/0xff0000 lookup default",
            f"ip {flag} rule add priority 5250 fwmark 0x80000/0xff0000 unreachable",
            f"ip {flag} rule add priority 5270 lookup 52",
            f"ip {flag} route add {net} dev tailscale0 table 52",
        )
    ),
)
# With the switch for all bridges off, as doctor has it for a LAN that is one.
BRIDGED = ("ip link set docker0 type bridge nf_call_iptables 1 nf_call_ip6tables 1",)
EVERY = (
    Neighbour("docker", "docker0", "172.17.0", lines=BRIDGED, publishes=True),
    Neighbour("libvirt", "virbr0", "192.168.122", publishes=True),
    Neighbour("fw4", firewall=False, publishes=True),
    Neighbour("firewalld", firewall=False, publishes=True),
    Neighbour("mwan3", lines=_mwan3(), undo=_without(_mwan3())),
    Neighbour("tailscale", lines=TAILSCALE, undo=(*_without(TAILSCALE[3:]), "ip link del tailscale0")),
)
