"""The network ports of this host, as its kernel shows them, and who configures each. Needs no root, changes nothing.

All of it is asked of this network namespace: netlink, and ethtool's ioctl on a socket; /sys shows the namespace that it
was mounted in.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.kernel.netlink import diff
from gateway.kernel.netlink.link import ETHERNET, Link
from gateway.kernel.netlink.reconciler import Netlink
from gateway.uplink import owner
from gateway.uplink.owner import Owner

SIOCETHTOOL = 0x8946
GSET, GDRVINFO = 1, 3
"""linux/ethtool.h: ``struct ethtool_cmd`` (44 bytes) and ``struct ethtool_drvinfo`` (196)."""
UNKNOWN_SPEED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Port:
    """One interface. ``kind`` is "" for hardware, else as ip-link(8) names it. ``link``: ``up``, ``no carrier`` or
    ``down``. ``speed`` in Mbit/s, 0 where it is not known. ``addresses`` have their prefix lengths; of those in
    ``dynamic`` the lifetime ends. ``gateways``: next hops of its default routes, the preferred one first; ``metric``:
    the least of those routes. ``bridge``: whose port it is; ``ports``: of this bridge."""

    name: str
    index: int
    mac: str
    kind: str = ""
    driver: str = ""
    link: str = "up"
    speed: int = 0
    mtu: int = 1500
    addresses: tuple[str, ...] = ()
    dynamic: frozenset[str] = frozenset()
    gateways: tuple[str, ...] = ()
    metric: int = 0
    bridge: str = ""
    ports: tuple[str, ...] = ()
    owner: Owner | None = None


async def look() -> list[Port]:
    """All Ethernet interfaces, in the order of their indexes. Raises KernelError."""
    async with Netlink() as netlink:
        links = await netlink.links()
        owners = owner.every({link.name: link.index for link in links.values()})
        names = {link.index: link.name for link in links.values()}
        found = []
        for link in sorted(links.values(), key=lambda one: one.index):
            if link.type == ETHERNET:
                found.append(await _port(netlink, link, names, links, owners))
        return found


async def _port(
    netlink: Netlink, link: Link, names: Mapping[int, str], links: Mapping[str, Link], owners: Mapping[str, Owner]
) -> Port:
    addresses = [one for one in await netlink.addresses(link.name) if not one.ip.is_link_local]
    defaults = [
        route for route in await netlink.routes(link.name)
        if not route.destination.prefixlen and route.table == diff.MAIN and route.type == "unicast"
    ]  # fmt: skip
    defaults.sort(key=lambda route: (route.metric, route.destination.version))
    driver, speed = ethtool(link.name)
    return Port(
        name=link.name,
        index=link.index,
        mac=link.hardware.hex(":"),
        kind=link.kind,
        driver=driver,
        link="up" if link.ready else "no carrier" if link.up else "down",
        speed=speed if link.ready else 0,
        mtu=link.mtu,
        addresses=tuple(f"{one.ip}/{one.prefix}" for one in addresses),
        dynamic=frozenset(f"{one.ip}/{one.prefix}" for one in addresses if one.valid is not None),
        gateways=tuple(dict.fromkeys(str(route.gateway) for route in defaults if route.gateway is not None)),
        metric=min((route.metric for route in defaults), default=0),
        bridge=names.get(link.master, ""),
        ports=tuple(one.name for one in links.values() if one.master == link.index),
        owner=owners.get(link.name),
    )


def ethtool(name: str) -> tuple[str, int]:
    """Driver and speed in Mbit/s; "" and 0 where they are not known."""
    info, command = _ioctl(name, GDRVINFO, 196), _ioctl(name, GSET, 44)
    driver = info[4:36].partition(b"\0")[0].decode(errors="replace")
    low, high = struct.unpack_from("=H", command, 12)[0], struct.unpack_from("=H", command, 28)[0]
    speed = high << 16 | low
    return driver, 0 if speed in (UNKNOWN_SPEED, 0xFFFF) else speed


def _ioctl(name: str, command: int, size: int) -> bytes:
    buffer = array.array("B", struct.pack("=I", command) + bytes(size - 4))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("@16sP16x", name.encode(), buffer.buffer_info()[0])
        try:
            fcntl.ioctl(sock, SIOCETHTOOL, request)
        except OSError:
            return bytes(size)
    return buffer.tobytes()
