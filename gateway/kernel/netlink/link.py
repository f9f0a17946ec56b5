"""Network interfaces: what the kernel says of them, and up and MTU with their inverses."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

IFF_UP = 1
ETHERNET = 1
LOOPBACK = 772


@dataclass(frozen=True, slots=True)
class Link:
    """``up`` is the operator's wish, ``carrier`` the wire's state; ``changes`` counts carrier changes, so that a flap
    between two looks is seen. ``hardware`` is empty where the link type has no addresses. ``filtered``: a classifier
    (tc) of somebody may look at what arrives. ``bridge``: None for other interfaces; for one whether what it bridges
    passes the hooks of iptables and nftables (IPv4 and IPv6) by the bridge's own wish, see linux/if_link.h
    IFLA_BR_NF_CALL_IPTABLES. ``kind`` is "" for hardware, else that of ip-link(8); ``master`` the index of the bridge
    or bond whose port it is, 0 for none; ``group`` is ``mark.PROTO`` where we made it."""

    index: int
    name: str
    up: bool
    carrier: bool
    changes: int
    hardware: bytes
    type: int
    mtu: int
    filtered: bool = False
    bridge: bool | None = None
    kind: str = ""
    master: int = 0
    group: int = 0

    @property
    def ready(self) -> bool:
        return self.up and self.carrier


def _bridge(info: Any) -> bool | None:
    if not info or info.get("kind") != "bridge":
        return None
    data = info.get("data")
    return bool(data and data.get("br_nf_call_iptables") and data.get("br_nf_call_ip6tables"))


def link_of(message: Any, filtered: Container[int] = ()) -> Link:
    """Of a pyroute2 RTM_NEWLINK message. ``filtered``: indexes of interfaces with a classifier for what arrives."""
    address = message.get("address") or ""
    try:
        hardware = bytes.fromhex(address.replace(":", ""))
    except ValueError:
        hardware = b""
    return Link(
        index=message["index"],
        name=message.get("ifname") or "",
        up=bool(message["flags"] & IFF_UP),
        carrier=bool(message.get("carrier")),
        changes=message.get("carrier_changes") or 0,
        hardware=hardware[:16] if message["ifi_type"] == ETHERNET else b"",
        type=message["ifi_type"],
        mtu=message.get("mtu") or 0,
        filtered=message["index"] in filtered,
        bridge=_bridge(message.get("linkinfo")),
        kind=(message.get("linkinfo") or {}).get("kind") or "",
        master=message.get("master") or 0,
        group=message.get("group") or 0,
    )
