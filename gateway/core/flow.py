"""Facts about one flow, and what was found out about it on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gateway.core.address import IP, Address

Network = Literal["tcp", "udp", "icmp"]
"""``icmp``: an echo request, which the rules see without ports; no outbound takes one as a flow."""


class Process(NamedTuple):
    """The owner of a router-local flow, as exact as its source could say."""

    path: str = ""
    """Absolute path of the executable (what /proc/PID/exe shows); empty if unknown."""
    uid: int = -1
    user: str = ""
    gids: tuple[int, ...] = ()
    """Primary group first, then the supplementary ones."""
    pid: int = 0
    groups: tuple[str, ...] = ()
    """Names of ``gids``, where they have one."""
    aliases: tuple[str, ...] = ()
    """Names of ``uid`` beside ``user``, where it has several."""
    cgroup: str = ""
    """Path in cgroup2, as its mount shows it: "/" is the root; empty if unknown."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def lineage(cgroup: str) -> tuple[str, ...]:
    """A cgroup by its path, and all those above it; none for ""."""
    parts = cgroup.strip("/").split("/")
    above = ("/".join(["", *parts[:count]]) for count in range(len(parts), 0, -1))
    return (*(path for path in above if path != "/"), "/") if cgroup else ()


class Device(NamedTuple):
    """The neighbour on a link of ours that a flow comes from: its sender, or the router before it."""

    mac: str = ""
    """Hardware address, six pairs of lower-case digits with colons; empty on links that have none."""
    interface: str = ""
    """Where its packets come in."""
    hostname: str = ""
    """Of its DHCP lease, lower-case; empty without one."""


class Flow(NamedTuple):
    """What is known when a flow enters: never changed afterwards."""

    network: Network
    inbound: str
    """Tag of the inbound it came through."""
    inbound_type: str
    source: Address
    destination: Address
    user: str = ""
    """Authenticated user of the inbound, not the user of the operating system."""
    process: Process | None = None
    """Owner, for router-local flows only."""
    local: Address | None = None
    """The address of ours that its client sent to, where it named the destination in its own words."""
    device: Device | None = None
    """Looked up where a rule asks; None for router-local flows."""
    fake: Address | None = None
    """What its client dialled, where that is a fake address and ``destination`` the name that it stands for."""


@dataclass(slots=True)
class Findings:
    """What sniffing, learning and resolving added; one object a flow, filled while the rules are walked."""

    protocol: str = ""
    """Sniffed protocol: tls http quic dns ..."""
    domain: str = ""
    """Sniffed name; it wins over ``learned``."""
    client: str = ""
    learned: tuple[str, ...] = ()
    """Names that our DNS resolved to the destination, the one this client resolved last first."""
    addresses: tuple[IP, ...] = field(default=())
    """Addresses of the destination's name, after a ``resolve`` action."""
