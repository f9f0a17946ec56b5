"""dnsmasq's configuration file and its file of upstream servers, from the LANs. Pure.

Follows dnsmasq(8) 2.90. All text that gets in was checked by ``uplink.options``: no value can hold a line break.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network

from gateway.core.address import IP
from gateway.uplink.options import LanOptions

HEAD = """\
# Written by the gateway from its configuration; changes made here are lost.
port=53
bind-dynamic
except-interface=lo
no-hosts
domain-needed
bogus-priv
cache-size=2000
dhcp-authoritative
quiet-dhcp
quiet-dhcp6
quiet-ra
pid-file
"""


def config(lans: Sequence[LanOptions], *, servers: str, leases: str, log: str, user: str = "", group: str = "") -> str:
    """The file's text. ``servers``: path of the upstream file (``upstream``), ``leases``: of the lease file, ``log``:
    of the log. ``bind-dynamic`` lets a LAN interface appear later."""
    lines = [HEAD + f"resolv-file={servers}", f"dhcp-leasefile={leases}", f"log-facility={log}"]
    if user:
        lines.append(f"user={user}")
    if group:
        lines.append(f"group={group}")
    if any(lan.advertise for lan in lans):
        lines.append("enable-ra")
    for number, lan in enumerate(lans):
        lines += _lan(lan, f"lan{number}")
    return "\n".join(lines) + "\n"


def _lan(lan: LanOptions, tag: str) -> list[str]:
    lines = [f"interface={lan.interface}"]
    network = lan.network
    if lan.domain:
        scope = f",{network}" if network is not None else ""
        lines += [f"domain={lan.domain}{scope}", f"local=/{lan.domain}/"]
        lines.append(f"interface-name=gateway.{lan.domain},{lan.interface}")
    if lan.dhcp_server is not None and network is not None:
        first, last = lan.dhcp_server.range
        lease = int(lan.dhcp_server.lease)
        lines.append(f"dhcp-range=set:{tag},{first},{last},{network.netmask},{lease}")
        lines += [_host(host.mac, host.address, host.name) for host in lan.dhcp_server.hosts]
        lines.append(f"dhcp-option=tag:{tag},option:router,{_router(lan, network)}")
    if lan.advertise:
        mode = "ra-stateless" if lan.advertise == "stateless" else "ra-only"
        lines.append(f"dhcp-range=::,constructor:{lan.interface},{mode},64,{24 * 3600}")
    return lines


def _host(mac: str, address: str, name: str) -> str:
    return "dhcp-host=" + ",".join(filter(None, (mac.lower(), address, name)))


def _router(lan: LanOptions, network: IPv4Network) -> IP:
    return next(p.ip for p in lan.address if isinstance(p.ip, IPv4Address) and p.ip in network)


def upstream(servers: Iterable[IP]) -> str:
    """The resolv.conf that dnsmasq reads its servers from; it looks again when the file changes."""
    return "".join(f"nameserver {ip}\n" for ip in servers)
