"""The ``gateway`` object, the one addition to sing-box's language: what makes a host a router."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Literal

import msgspec

from gateway.config.decode import decode
from gateway.config.fields import Duration
from gateway.config.shared import Options
from gateway.core.errors import ConfigError
from gateway.uplink.options import LanOptions, UplinkOptions


class KernelOptions(Options):
    """``mode``: how far learned names are believed (docs/kernel-plane.md). ``cgroup``: where the process programs
    attach; "" is the cgroup2 root."""

    mode: Literal["paranoid", "strict", "balanced", "fast", "off"] = "strict"
    offload: Literal["auto", "off"] = "auto"
    cgroup: str = ""


class ForwardOptions(Options, kw_only=True):
    """A port forward from the uplinks to a LAN host; ``to_port`` 0 keeps the port. IPv6 is routed, never translated:
    to an IPv6 host it is an opening, and the port stays."""

    network: Literal["tcp", "udp"] = "tcp"
    port: int
    to: str
    to_port: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536 or not 0 <= self.to_port < 65536:
            raise ValueError("port and to_port are 1 to 65535")
        if ip_address(self.to).version == 6 and self.to_port not in (0, self.port):
            raise ValueError("IPv6 is not translated: to_port cannot differ from port")


class GatewayOptions(Options):
    """``inbound``: tag of the tproxy inbound that captured flows enter; "" makes one. ``forwards`` and ``open``: what
    the closed WAN lets in. ``capture_dns``: answer the LAN's port 53, whatever address it asks. ``heartbeat``: whole
    seconds after which an event loop that stands still counts as dead; 0 never."""

    inbound: str = ""
    uplinks: list[UplinkOptions] = msgspec.field(default_factory=list)
    lans: list[LanOptions] = msgspec.field(default_factory=list)
    kernel: KernelOptions = msgspec.field(default_factory=KernelOptions)
    learn: bool = True
    firewall: bool = True
    fail: Literal["open", "closed", "hold"] = "open"
    heartbeat: Duration = Duration(3)
    capture_dns: bool = True
    forwards: list[ForwardOptions] = msgspec.field(default_factory=list)
    open_tcp: list[int] = msgspec.field(default_factory=list)
    open_udp: list[int] = msgspec.field(default_factory=list)


def decode_section(value: Any, path: str) -> GatewayOptions:
    """The ``gateway`` object. Raises ConfigError."""
    options = decode(GatewayOptions, value, path)
    if options.heartbeat and (options.heartbeat < 2 or options.heartbeat % 1):
        raise ConfigError('whole seconds, "2s" at least; "0s" for none', f"{path}.heartbeat")
    seen: dict[str, str] = {}
    names = [(f"{path}.uplinks[{index}]", item.interface) for index, item in enumerate(options.uplinks)]
    names += [(f"{path}.lans[{index}]", item.interface) for index, item in enumerate(options.lans)]
    for here, name in names:
        if name in seen:
            raise ConfigError(f'interface "{name}" is already taken by {seen[name]}', f"{here}.interface")
        seen[name] = here
    return options
