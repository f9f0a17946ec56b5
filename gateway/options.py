"""The ``gateway`` object, the one addition to sing-box's language: what makes a host a router."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import msgspec

from gateway.config.decode import decode
from gateway.config.fields import Duration
from gateway.config.shared import Options
from gateway.core.errors import ConfigError
from gateway.uplink.options import LanOptions, UplinkOptions

DOMAIN = re.compile(r"(?=.{1,254}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*"
                    r"[A-Za-z_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?")  # fmt: skip


class KernelOptions(Options):
    """``mode``: how far learned names are believed, ``hints``: whether a client's next connections to where one was
    sniffed and is direct are the kernel's, ``shared_prefixes``: whether in prefixes that serve names of different
    verdicts a name is believed only after such a connection; both ``auto`` by the mode (docs/kernel-plane.md).
    ``accounting``: the kernel counts bytes and packets of its flows (docs/flows.md). ``cgroup``: where the process
    programs attach; "" is the cgroup2 root."""

    mode: Literal["paranoid", "strict", "balanced", "fast", "off"] = "strict"
    hints: Literal["auto", "on", "off"] = "auto"
    shared_prefixes: Literal["auto", "on", "off"] = "auto"
    offload: Literal["auto", "off"] = "auto"
    accounting: bool = True
    cgroup: str = ""

    def __post_init__(self) -> None:
        if self.mode in ("paranoid", "off") and "on" in (self.hints, self.shared_prefixes):
            raise ValueError("hints and shared_prefixes need a mode that believes names: strict, balanced or fast")


class DnsPolicyOptions(Options):
    """What the LANs' clients may do to ask others for names (docs/dns.md). ``dot``: port 853, DNS over TLS and QUIC.
    ``doh``: servers of DNS over HTTPS that are refused, names (with all below them) and addresses or prefixes.
    ``canary``: tell Firefox that names are filtered here. ``ddr``: answer to who asks for encrypted resolvers
    (RFC 9462). ``ech``: keys for Encrypted Client Hello in HTTPS answers."""

    dot: Literal["allow", "block"] = "allow"
    doh: list[str] = msgspec.field(default_factory=list)
    canary: bool = True
    ddr: Literal["empty", "forward"] = "empty"
    ech: Literal["keep", "strip"] = "keep"

    def __post_init__(self) -> None:
        for one in self.doh:
            if _prefix(one) is None and not DOMAIN.fullmatch(one):
                raise ValueError(
                    f'doh: "{one}" is neither a domain name nor an address or prefix; of a URL write the host'
                )

    @property
    def prefixes(self) -> list[str]:
        """Of ``doh``."""
        return [prefix for one in self.doh if (prefix := _prefix(one)) is not None]

    @property
    def domains(self) -> list[str]:
        """Of ``doh``, lower case, without a final dot."""
        return [one.rstrip(".").lower() for one in self.doh if _prefix(one) is None]


def _prefix(text: str) -> str | None:
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        return None


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
    dns_policy: DnsPolicyOptions = msgspec.field(default_factory=DnsPolicyOptions)
    learn: bool = True
    firewall: bool = True
    fail: Literal["open", "closed", "hold"] = "open"
    heartbeat: Duration = Duration(3)
    capture_dns: bool = True
    forwards: list[ForwardOptions] = msgspec.field(default_factory=list)
    open_tcp: list[int] = msgspec.field(default_factory=list)
    open_udp: list[int] = msgspec.field(default_factory=list)

    @property
    def arms(self) -> tuple[str, ...]:
        """Interfaces that are uplink and LAN at once: the clients' own router is on the same link."""
        lans = {lan.interface for lan in self.lans}
        return tuple(one.interface for one in self.uplinks if one.interface in lans)


def decode_section(value: Any, path: str) -> GatewayOptions:
    """The ``gateway`` object. Raises ConfigError."""
    options = decode(GatewayOptions, value, path)
    if not options.learn and "on" in (options.kernel.hints, options.kernel.shared_prefixes):
        raise ConfigError("hints and shared_prefixes go by names, and learn is false", f"{path}.kernel")
    if options.heartbeat and (options.heartbeat < 2 or options.heartbeat % 1):
        raise ConfigError('whole seconds, "2s" at least; "0s" for none', f"{path}.heartbeat")
    _roles(options, path)
    return options


def _roles(options: GatewayOptions, path: str) -> None:
    """An interface has one role, but that an uplink may be a LAN too: one arm. Raises ConfigError."""
    seen: dict[str, str] = {}

    def take(name: str, here: str) -> None:
        if name in seen:
            raise ConfigError(f'interface "{name}" is already taken by {seen[name]}', here)
        seen[name] = here

    for index, uplink in enumerate(options.uplinks):
        take(uplink.interface, f"{path}.uplinks[{index}].interface")
    for index, lan in enumerate(options.lans):
        here = f"{path}.lans[{index}]"
        if lan.interface in options.arms and seen[lan.interface].startswith(f"{path}.uplinks"):
            if lan.address or lan.ports:
                field = "address" if lan.address else "ports"
                wrong = "an uplink that is a LAN too has the addresses and the interface of the uplink"
                raise ConfigError(f"{wrong}: leave it out, or write it there", f"{here}.{field}")
            seen[lan.interface] = f"{here}.interface"
            continue
        take(lan.interface, f"{here}.interface")
        for number, port in enumerate(lan.ports):
            take(port, f"{here}.ports[{number}]")
