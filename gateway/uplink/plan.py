"""What an uplink's lease and options ask of the kernel, and what an uplink looks like from outside. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from gateway.core.address import IP
from gateway.kernel.netlink.diff import DHCP, Address, Route
from gateway.uplink.dhcp4.inform import Names
from gateway.uplink.dhcp4.lease import Lease, usable
from gateway.uplink.options import StaticOptions, UplinkOptions

IP6_MIN_MTU = 1280
MAX_LIFETIME = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One uplink at one moment. ``problem`` is empty where all is well, else one line for a person. ``gateways`` are
    those of default routes. ``owner``: the other program that keeps our DHCP client from starting, "" for none."""

    interface: str
    cost: int
    carrier: bool = False
    lease: Lease | None = None
    addresses: tuple[str, ...] = ()
    gateways: tuple[IP, ...] = ()
    dns: tuple[IP, ...] = ()
    search: tuple[str, ...] = ()
    problem: str = "not started"
    owner: str = ""

    @property
    def ready(self) -> bool:
        """Carries, and has an address and a way out."""
        return self.carrier and bool(self.addresses) and bool(self.gateways)


def of_lease(interface: str, lease: Lease, metric: int, now: float) -> tuple[Address, list[Route]]:
    """The lease's address with the lifetime left, and its routes. A gateway outside the address's network (also with
    a /32 mask) is reached ``onlink``."""
    left = None if math.isinf(lease.expiry) else min(max(1, math.ceil(lease.expiry - now)), MAX_LIFETIME)
    address = Address(interface, lease.address, lease.prefix, left, left)
    routes = [
        Route(
            interface, route.destination, route.gateway, metric, proto=DHCP, source=lease.address,
            onlink=route.gateway is not None and (route.gateway not in lease.network or lease.prefix == 32),
        )
        for route in lease.routes
    ]  # fmt: skip
    return address, routes


def of_static(interface: str, options: StaticOptions, metric: int) -> tuple[list[Address], list[Route]]:
    addresses = [Address(interface, prefix.ip, prefix.length) for prefix in options.address]
    routes = []
    for text in options.gateway:
        gateway = ip_address(text)
        inside = any(gateway in prefix.network for prefix in options.address if prefix.ip.version == gateway.version)
        every: IPv4Network | IPv6Network = IPv4Network("0.0.0.0/0") if gateway.version == 4 else IPv6Network("::/0")
        onlink = not inside and not gateway.is_link_local
        routes.append(Route(interface, every, gateway, metric, onlink=onlink))
    return addresses, routes


def mtu(options: UplinkOptions, lease: Lease | None) -> int:
    """What to set; 0 = leave it. IPv6 needs 1280: the kernel turns it off below."""
    wanted = options.mtu
    if not wanted and lease is not None and options.dhcp4 is not None and options.dhcp4.use_mtu:
        wanted = lease.mtu
    six = options.static is not None and any(isinstance(prefix.ip, IPv6Address) for prefix in options.static.address)
    return max(wanted, IP6_MIN_MTU) if wanted and six else wanted


def dns(
    options: UplinkOptions, lease: Lease | None, own: frozenset[IP], informed: Names | None = None
) -> tuple[tuple[IP, ...], tuple[str, ...]]:
    """Name servers and search list: the static ones first, ``informed`` where there is nothing else. Servers that are
    ourselves would be a loop."""
    servers: list[IP] = []
    search: list[str] = []
    if options.static is not None:
        servers += [ip_address(text) for text in options.static.dns]
        search += options.static.search
    if lease is not None and options.dhcp4 is not None and options.dhcp4.use_dns:
        servers += lease.dns
        search += lease.suffixes
    if informed is not None and not servers:
        servers += informed.dns
        search += informed.search
    mine = own | {known.address for known in (lease, informed) if known is not None}
    return tuple(dict.fromkeys(ip for ip in servers if ip not in mine)), tuple(dict.fromkeys(search))


def asking(addresses: Iterable[Address]) -> IPv4Address | None:
    """The address that DHCPINFORM asks for: the interface's first of IPv4."""
    fit = (one.ip for one in addresses if isinstance(one.ip, IPv4Address))
    return next((ip for ip in fit if usable(ip) and not ip.is_link_local), None)


def client_id(mode: str, hardware: bytes, interface: str, duid: bytes) -> bytes:
    """Option 61. ``duid`` mode is RFC 4361: type 255, an IAID (here of the interface's name), the DUID."""
    if mode == "none":
        return b""
    if mode == "mac":
        return b"\x01" + hardware if hardware else b""
    if mode == "duid":
        iaid = 0x811C9DC5  # FNV-1a: stable, and differs between interfaces
        for byte in interface.encode():
            iaid = (iaid ^ byte) * 0x01000193 & 0xFFFFFFFF
        return b"\xff" + iaid.to_bytes(4, "big") + duid
    return bytes.fromhex(mode.replace(":", ""))


def allowed(texts: list[str]) -> frozenset[IPv4Address]:
    return frozenset(IPv4Address(text) for text in texts)
