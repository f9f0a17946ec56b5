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

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


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
