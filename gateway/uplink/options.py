"""The JSON objects of ``gateway.uplinks[]`` and ``gateway.lans[]``: what each field means, checked on its own."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Literal

import msgspec

from gateway.config.fields import Duration, Prefix
from gateway.config.shared import Options

INTERFACE = re.compile(rb"[^\s/:,\"'*\\]{1,15}")
"""IFNAMSIZ of linux/if.h is 16 with the closing zero; a star would be a pattern to nftables."""
HEX = re.compile(r"(?:[0-9a-fA-F]{2}:?)+")
LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


def _interface(name: str) -> None:
    if not INTERFACE.fullmatch(name.encode()) or name in (".", ".."):
        raise ValueError(f'"{name}" is not an interface name')


def _ips(field: str, values: list[str], version: int = 0) -> None:
    for value in values:
        try:
            ip = ip_address(value)
        except ValueError:
            raise ValueError(f'{field}: "{value}" is not an IP address') from None
        if version and ip.version != version:
            raise ValueError(f'{field}: "{value}" is not an IPv{version} address')


def _domain(field: str, value: str) -> None:
    if value and (len(value) > 253 or not all(LABEL.fullmatch(label) for label in value.split("."))):
        raise ValueError(f'{field}: "{value}" is not a domain name')


class Dhcp4Options(Options):
    """``client_id``: ``mac`` (type 1 and the hardware address), ``duid`` (RFC 4361, stable for this state folder),
    ``none``, or the option's bytes in hexadecimal. ``vendor_class``: text, or bytes as ``hex:...``. ``collect``:
    time to wait for better offers after the first. ``required``: option codes an offer must have. ``allow``, ``deny``:
    server addresses. ``use_mtu``: apply option 26. ``add_router``: options 3 and 33 count beside classless routes.
    ``release``: give the lease back when the gateway stops."""

    client_id: str = "mac"
    hostname: str = ""
    vendor_class: str = ""
    broadcast: bool = False
    start_delay: Duration = Duration(1)
    collect: Duration = Duration(0)
    required: list[int] = msgspec.field(default_factory=list)
    allow: list[str] = msgspec.field(default_factory=list)
    deny: list[str] = msgspec.field(default_factory=list)
    use_mtu: bool = True
    use_dns: bool = True
    add_router: bool = False
    release: bool = False

    def __post_init__(self) -> None:
        if self.client_id not in ("mac", "duid", "none") and not HEX.fullmatch(self.client_id):
            raise ValueError('client_id is "mac", "duid", "none" or bytes in hexadecimal')
        if self.vendor_class.startswith("hex:") and not HEX.fullmatch(self.vendor_class[4:]):
            raise ValueError("vendor_class: no hexadecimal bytes after hex:")
        if len(self.client_id) > 510 or len(self.vendor_class) > 255:
            raise ValueError("client_id or vendor_class is too long")
        _domain("hostname", self.hostname)
        _ips("allow", self.allow, 4)
        _ips("deny", self.deny, 4)
        if not 0 <= self.start_delay <= 10 or not 0 <= self.collect <= 60:
            raise ValueError('start_delay is "0s" to "10s", collect "0s" to "1m"')
        if not all(0 < code < 255 for code in self.required):
            raise ValueError("required holds option codes, 1 to 254")

    @property
    def vendor_bytes(self) -> bytes:
        text = self.vendor_class
        return bytes.fromhex(text[4:].replace(":", "")) if text.startswith("hex:") else text.encode()


class StaticOptions(Options):
    """Addresses with their prefix lengths, IPv4 and IPv6; ``gateway``: at most one of each family."""

    address: list[Prefix]
    gateway: list[str] = msgspec.field(default_factory=list)
    dns: list[str] = msgspec.field(default_factory=list)
    search: list[str] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        _ips("gateway", self.gateway)
        _ips("dns", self.dns)
        for name in self.search:
            _domain("search", name)
        families = [ip_address(value).version for value in self.gateway]
        if len(families) != len(set(families)):
            raise ValueError("gateway: one address of each family")
        if not self.address:
            raise ValueError("address: at least one")


class UplinkOptions(Options):
    """One way out. ``dhcp4`` and ``static`` may stand together (IPv4 by DHCP, IPv6 static); ``external``: somebody
    else configures the interface, we only look, and with ``inform`` ask the network's DHCP server for name servers
    (IPv4). The uplink with the lowest ``priority`` that works is elected;
    ``metric`` of its routes, 0 = 100 x priority. ``mtu`` 0 = as it is."""

    interface: str
    dhcp4: Dhcp4Options | None = None
    static: StaticOptions | None = None
    external: bool = False
    inform: bool = True
    priority: int = 10
    metric: int = 0
    mtu: int = 0

    def __post_init__(self) -> None:
        _interface(self.interface)
        if self.external == (self.dhcp4 is not None or self.static is not None):
            raise ValueError('an uplink has "dhcp4", "static" or both, or else "external": true')
        if not 0 < self.priority <= 1_000_000 or not 0 <= self.metric < 1 << 31:
            raise ValueError("priority is 1 to 1000000, metric 0 to 2147483647")
        if self.mtu and not 576 <= self.mtu <= 65535:
            raise ValueError("mtu is 576 to 65535")

    @property
    def cost(self) -> int:
        return self.metric or self.priority * 100


class DhcpHost(Options):
    """A fixed lease."""

    mac: str
    address: str
    name: str = ""

    def __post_init__(self) -> None:
        if not MAC.fullmatch(self.mac):
            raise ValueError(f'"{self.mac}" is not a hardware address')
        _ips("address", [self.address], 4)
        if self.name and not LABEL.fullmatch(self.name):
            raise ValueError(f'"{self.name}" is not a host name')


class DhcpServerOptions(Options):
    """``range``: first and last address. ``lease``: at least two minutes (dnsmasq's own bound)."""

    range: list[str]
    lease: Duration = Duration(12 * 3600)
    hosts: list[DhcpHost] = msgspec.field(default_factory=list)

    def __post_init__(self) -> None:
        _ips("range", self.range, 4)
        if len(self.range) != 2 or IPv4Address(self.range[0]) > IPv4Address(self.range[1]):
            raise ValueError("range: the first and the last address")
        if not 120 <= self.lease < 1 << 31:
            raise ValueError('lease is at least "2m"')


class LanOptions(Options):
    """One network behind us. ``ports``: interfaces of which a bridge named ``interface`` is made. Without ``address``
    the network is somebody else's: flows that come in are steered, nothing is set or served. ``ra``: router
    advertisements for the IPv6 addresses of ``address``: ``slaac``, or ``stateless`` (SLAAC, and names by stateless
    DHCPv6); ``auto``: stateless where there is an IPv6 /64 and a ``dhcp_server``. ``domain``: of the leases' names."""

    interface: str
    ports: list[str] = msgspec.field(default_factory=list)
    address: list[Prefix] = msgspec.field(default_factory=list)
    dhcp_server: DhcpServerOptions | None = None
    ra: Literal["auto", "off", "slaac", "stateless"] = "auto"
    domain: str = "lan"

    def __post_init__(self) -> None:
        for name in (self.interface, *self.ports):
            _interface(name)
        _domain("domain", self.domain)
        if self.dhcp_server is not None and self.network is None:
            raise ValueError("dhcp_server: its range is in no network of address")

    @property
    def network(self) -> IPv4Network | None:
        """The IPv4 network that the DHCP range is in."""
        if self.dhcp_server is None:
            return None
        ends = [IPv4Address(end) for end in self.dhcp_server.range]
        for prefix in self.address:
            network = prefix.network
            if isinstance(network, IPv4Network) and all(end in network for end in ends):
                return network
        return None

    @property
    def advertise(self) -> Literal["", "slaac", "stateless"]:
        six = any(prefix.ip.version == 6 and prefix.length == 64 for prefix in self.address)
        if self.ra == "auto":
            return "stateless" if six and self.dhcp_server is not None else ""
        return "" if self.ra == "off" or not six else self.ra
