"""Which device a flow comes from: ``core.contracts.Devices``, by the kernel's routes and neighbours, and by the frames
that were steered to userspace.

A flow from behind another router has the device that it came through, as its packets show; so a rule means the same
here and in nftables (``ether saddr``).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv6Address
from time import monotonic
from typing import Protocol

from gateway.core.address import IP
from gateway.core.errors import KernelError
from gateway.core.flow import Device
from gateway.kernel.netlink.lookup import NETLINK_ROUTE, Lookup, neighbour, route_to
from gateway.kernel.nft.sender import Senders

KNOWN = 1.0
"""Seconds that an answer is believed: a device that takes another's address is taken for it so long."""
MOST = 4096
"""Answers remembered; at the bound all are forgotten and asked for anew."""


class Leases(Protocol):
    """What DHCP servers know of devices, as of now."""

    def hostnames(self) -> Mapping[str, str]:
        """Hardware address to host name."""

    def mac(self, address: IP) -> str:
        """Of the device that holds ``address``; "" for none."""


class Neighbours:
    """Looks in the network namespace where it was made. Raises KernelError from the constructor where netlink is
    refused. Not for use by several threads.

    An address that is new, or that the kernel has forgotten, has no neighbour until we speak to it: who sends a first
    datagram from it is known by that very frame, and otherwise by its lease. A TCP client always is a neighbour."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._lookup = Lookup(NETLINK_ROUTE)
        self._senders = Senders()
        self._known: dict[IP, tuple[float, Device | None]] = {}

    def close(self) -> None:
        """Any number of times."""
        self._lookup.close()
        self._senders.close()

    def find(self, source: IP) -> Device | None:
        """See ``core.contracts.Devices``."""
        now = monotonic()
        until, device = self._known.get(source, (0.0, None))
        if until <= now:
            try:
                device = self._look(source)
            except (OSError, KernelError):
                return None
            if len(self._known) >= MOST:
                self._known.clear()
            if device is None or device.mac:
                self._known[source] = now + KNOWN, device
        if device is None:
            return None
        mac = device.mac or self._leases.mac(source)
        return device._replace(mac=mac, hostname=self._leases.hostnames().get(mac, ""))

    def _look(self, source: IP) -> Device | None:
        if isinstance(source, IPv6Address) and source.is_link_local:
            # Of no route: each link has the same prefix.
            for index, name in socket.if_nameindex():
                if (found := neighbour(self._lookup, source, index)) is not None:
                    return Device(found.hex(":"), name)
            return Device()
        way = route_to(self._lookup, source)
        if way is None:
            return Device()
        if way.local:
            return None
        found = neighbour(self._lookup, way.gateway or source, way.interface) or self._senders.find(source)
        return Device(found.hex(":"), socket.if_indextoname(way.interface))
