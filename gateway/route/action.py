"""What a rule does when it holds. Pure.

``route``, ``reject`` and ``hijack-dns`` end the walk; ``route-options``, ``sniff`` and ``resolve`` add to what is known
and let it go on. ``bypass`` is for the kernel; in userspace it is ``route`` with an outbound, nothing without.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import msgspec

from gateway.config.fields import Duration, UDPTimeout
from gateway.config.shared import Options, Strategy

STREAM_SNIFFERS = ("tls", "http", "dns", "bittorrent", "ssh", "rdp")
PACKET_SNIFFERS = ("dns", "quic", "stun", "bittorrent", "dtls", "ntp")
BUILT_SNIFFERS = frozenset({"tls", "http", "dns", "quic"})
NAMED_PROTOCOLS = frozenset({"tls", "http", "quic"})
"""Protocols whose first bytes can hold a name."""
SERVER_FIRST = frozenset({25, 465, 587, 143, 993, 110, 995})
"""Ports where the server speaks first: never sniffed."""


class Overrides(Options):
    """``route-options`` fields, also part of ``route``."""

    override_address: str = ""
    override_port: int = 0
    udp_disable_domain_unmapping: bool = False
    udp_connect: bool = False
    udp_timeout: UDPTimeout = UDPTimeout(0)


class Route(Overrides):
    outbound: str = ""


class RouteOptions(Overrides):
    pass


class Bypass(Overrides):
    """Of sing-box 1.13: a person's own word that a flow stays in the kernel. Holds where the packet alone shows that
    the rule does and that no rule above it does; what a rule above would have to sniff is not asked."""

    outbound: str = ""


class Reject(Options):
    """``default`` answers (TCP reset, ICMP unreachable), ``drop`` stays silent. ``no_drop``: ``default`` does not turn
    into ``drop`` under a flood (``route.flood``)."""

    method: Literal["", "default", "drop"] = ""
    no_drop: bool = False


class HijackDNS(Options):
    pass


@lru_cache
def _protocols(wanted: tuple[str, ...], network: str) -> frozenset[str]:
    known = BUILT_SNIFFERS.intersection(STREAM_SNIFFERS if network == "tcp" else PACKET_SNIFFERS)
    return known.intersection(wanted) if wanted else known


class Sniff(Options):
    """``sniffer`` empty: all. ``timeout`` in seconds."""

    sniffer: str | list[str] = msgspec.field(default_factory=list)
    timeout: Duration = Duration(0.3)

    def protocols(self, network: str) -> frozenset[str]:
        """Protocols that this action would try on ``network``; what is not built yet is left out."""
        return _protocols((self.sniffer,) if isinstance(self.sniffer, str) else tuple(self.sniffer), network)


class Resolve(Options):
    server: str = ""
    strategy: Strategy = ""
    disable_cache: bool = False
    rewrite_ttl: int | None = None


Action = Route | RouteOptions | Bypass | Reject | HijackDNS | Sniff | Resolve


def has_options(action: Action) -> bool:
    """Whether an action sets anything that ``route-options`` can set."""
    if not isinstance(action, Overrides):
        return False
    return any(getattr(action, name) != getattr(RouteOptions(), name) for name in Overrides.__struct_fields__)
