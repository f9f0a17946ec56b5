"""Option blocks that many types share: listen fields, dial fields, server fields, users.

Go embeds structs; here embedding is a line of inheritance (two non-empty msgspec bases clash):
``DialerOptions -> RemoteOptions -> a protocol's OutboundOptions`` and ``ListenOptions -> InboundOptions``. A field that
sing-box has and that is absent here is not built yet; the loader says so by name.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from gateway.config.fields import Duration, FwMark, UDPTimeout, as_list

Strategy = Literal["", "prefer_ipv4", "prefer_ipv6", "ipv4_only", "ipv6_only"]
NetworkName = Literal["tcp", "udp"]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
NetworkList = NetworkName | list[NetworkName] | None


def networks(named: NetworkList) -> frozenset[NetworkName]:
    """Those of a ``network`` field: both where it names none."""
    wanted: list[NetworkName] = as_list(named) or ["tcp", "udp"]
    return frozenset(wanted)


class Options(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Base of every option object: strict, and silent about defaults when written back."""


class DomainResolver(Options, kw_only=True):
    """``domain_resolver``: which DNS server resolves a server's name. Text alone is the server's tag."""

    server: str
    strategy: Strategy = ""
    disable_cache: bool = False
    rewrite_ttl: int | None = None


class ListenOptions(Options):
    """Listen fields. ``udp_timeout`` ends an idle UDP session (default 5 minutes)."""

    listen: str = ""
    listen_port: Port = 0
    bind_interface: str = ""
    routing_mark: FwMark = FwMark(0)
    reuse_addr: bool = False
    tcp_fast_open: bool = False
    tcp_multi_path: bool = False
    tcp_keep_alive: Duration = Duration(600)
    tcp_keep_alive_interval: Duration = Duration(75)
    udp_timeout: UDPTimeout = UDPTimeout(300)


class DialerOptions(Options):
    """Dial fields. ``detour`` names another outbound to go through; then the other fields do not count."""

    detour: str = ""
    bind_interface: str = ""
    inet4_bind_address: str = ""
    inet6_bind_address: str = ""
    routing_mark: FwMark = FwMark(0)
    reuse_addr: bool = False
    connect_timeout: Duration = Duration(5)
    tcp_fast_open: bool = False
    tcp_multi_path: bool = False
    domain_resolver: str | DomainResolver = ""
    fallback_delay: Duration = Duration(0.3)


class RemoteOptions(DialerOptions, kw_only=True):
    """Dial fields and the server's address."""

    server: str
    server_port: Port


class User(Options, kw_only=True):
    """One inbound user of SOCKS, HTTP or mixed."""

    username: str
    password: str = ""


class UserListenOptions(ListenOptions):
    """Of inbounds with users; empty: everybody may enter."""

    users: list[User] = []
