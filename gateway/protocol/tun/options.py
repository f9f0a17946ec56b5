"""JSON object of type ``tun``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Annotated, Any, Literal

import msgspec

from gateway.config.fields import FwMark, Prefix, Prefixes, UDPTimeout, as_list
from gateway.config.shared import Options
from gateway.core.address import IP
from gateway.kernel import mark
from gateway.kernel.nft.tun_render import NUMBERS

LAST_UID = 0xFFFFFFFE
RULES = 32
"""Priorities that the ip rules of one inbound may take, from ``iproute2_rule_index`` on."""
RESERVED = frozenset((253, 254, 255, mark.TABLE, *range(mark.TUN_TABLE, mark.TUN_TABLE + NUMBERS)))
"""Routing tables of the system (default, main, local), and those by which we deliver."""
LIFTED = 256
"""Ranges of users, and interfaces, that ip rules may name: the kernel walks all of them for each packet. A set of nft
(``auto_redirect``) has no such bound."""
SMALLEST = {4: 68, 6: 1280}
"""MTU below which a device has no IPv4 (RFC 791) or IPv6 (RFC 8200)."""

Texts = str | list[str] | None
Uid = Annotated[int, msgspec.Meta(ge=0, le=LAST_UID)]
Uids = Uid | list[Uid] | None
Mtu = Annotated[int, msgspec.Meta(ge=0, le=65535)]

_NOBODY = IPv4Address("255.255.255.255")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_NAME = re.compile(r"[^\s/:\"\\*%]+")
_OLD = {
    "inet4_address": "address", "inet6_address": "address", "inet4_route_address": "route_address",
    "inet6_route_address": "route_address", "inet4_route_exclude_address": "route_exclude_address",
    "inet6_route_exclude_address": "route_exclude_address",
}  # fmt: skip
_NOT_HERE = {
    "include_android_user": "Android", "include_package": "Android", "exclude_package": "Android",
    "platform": "told to the graphical clients of Android and Apple",
}  # fmt: skip


class PlatformOptions(Options):
    http_proxy: dict[str, Any] = msgspec.field(default_factory=dict)


class InboundOptions(Options):
    """0 in ``mtu`` is 65535, in ``iproute2_table_index`` 2022, in ``iproute2_rule_index`` 9000, in a mark sing-box's.
    ``include_mac_address`` and ``exclude_mac_address`` are sing-box 1.14's."""

    interface_name: str = ""
    mtu: Mtu = 0
    address: Prefixes = Prefixes()
    auto_route: bool = False
    iproute2_table_index: int = 0
    iproute2_rule_index: int = 0
    auto_redirect: bool = False
    auto_redirect_input_mark: FwMark = FwMark(0)
    auto_redirect_output_mark: FwMark = FwMark(0)
    loopback_address: Texts = None
    strict_route: bool = False
    route_address: Prefixes = Prefixes()
    route_address_set: Texts = None
    route_exclude_address: Prefixes = Prefixes()
    route_exclude_address_set: Texts = None
    include_interface: Texts = None
    exclude_interface: Texts = None
    include_uid: Uids = None
    include_uid_range: Texts = None
    exclude_uid: Uids = None
    exclude_uid_range: Texts = None
    include_mac_address: Texts = None
    exclude_mac_address: Texts = None
    udp_timeout: UDPTimeout = UDPTimeout(300)
    stack: Literal["", "system", "gvisor", "mixed"] = ""
    endpoint_independent_nat: bool = False
    gso: bool = False
    inet4_address: Prefixes = Prefixes()
    inet6_address: Prefixes = Prefixes()
    inet4_route_address: Prefixes = Prefixes()
    inet6_route_address: Prefixes = Prefixes()
    inet4_route_exclude_address: Prefixes = Prefixes()
    inet6_route_exclude_address: Prefixes = Prefixes()
    include_android_user: int | list[int] | None = None
    include_package: Texts = None
    exclude_package: Texts = None
    platform: PlatformOptions | None = None

    def __post_init__(self) -> None:
        if not self.addresses:
            raise ValueError('a tun needs "address", for example ["172.19.0.1/30", "fdfe:dcba:9876::1/126"]')
        _ = self.loopback
        self._check_device()
        self._check_names()
        self._check_rules()
        self._check_routes()

    def _check_device(self) -> None:
        for prefix in self.addresses:
            ip = prefix.ip
            if ip.is_multicast or ip.is_unspecified or ip.is_loopback or ip == _NOBODY or not prefix.length:
                raise ValueError(f'address: "{prefix}" is no address of a device')
        for family in self.families:
            if 0 < self.mtu < SMALLEST[family]:
                raise ValueError(f"mtu: {self.mtu} is too small for IPv{family}, which needs {SMALLEST[family]}")
        # The kernel puts a number in the place of one "%d".
        _check_name("interface_name", self.interface_name.replace("%d", "0", 1) or "tun0")

    def _check_names(self) -> None:
        for field in ("include_interface", "exclude_interface"):
            for name in as_list(getattr(self, field)):
                _check_name(field, name)
        for field in ("include_mac_address", "exclude_mac_address"):
            for text in as_list(getattr(self, field)):
                if not _MAC.fullmatch(text):
                    raise ValueError(
                        f'{field}: "{text}" is not a hardware address; write for example "02:00:00:00:00:01"'
                    )
                if not self.auto_redirect:
                    raise ValueError(f'{field} needs "auto_redirect": true')
        for one, other in (("include_interface", "exclude_interface"), ("include_mac_address", "exclude_mac_address")):
            if as_list(getattr(self, one)) and as_list(getattr(self, other)):
                raise ValueError(f"{one} and {other} exclude each other")

    def _check_rules(self) -> None:
        users = len(self.included_uids) + len(self.excluded_uids)
        if not self.auto_route or self.auto_redirect:
            return
        for fields, count in (
            ("include_uid, exclude_uid and their ranges", users),
            ("include_interface", len(as_list(self.include_interface))),
            ("exclude_interface", len(as_list(self.exclude_interface))),
        ):
            if count > LIFTED:
                raise ValueError(f'{fields}: {count} are too many for ip rules ({LIFTED}); write "auto_redirect": true')

    def _check_routes(self) -> None:
        if self.auto_redirect and not self.auto_route:
            raise ValueError('auto_redirect needs "auto_route": true')
        if not 0 <= self.iproute2_table_index < 1 << 31 or self.table in RESERVED:
            raise ValueError(
                f"iproute2_table_index: {self.table} is a table of the system or of ours, or no number of one"
            )
        if not 0 <= self.iproute2_rule_index < 32766 - RULES:
            raise ValueError(f"iproute2_rule_index: {RULES} rules from {self.rule} on do not end before main's, 32766")
        if (self.input_mark | self.output_mark) & mark.BYTE:
            raise ValueError("auto_redirect marks: bits 24 to 31 are the gateway's own")
        if self.input_mark == self.output_mark:
            raise ValueError("auto_redirect_input_mark and auto_redirect_output_mark must differ")

    # What it comes to

    @property
    def addresses(self) -> tuple[Prefix, ...]:
        return (*self.address, *self.inet4_address, *self.inet6_address)

    @property
    def routes(self) -> tuple[Prefix, ...]:
        return (*self.route_address, *self.inet4_route_address, *self.inet6_route_address)

    @property
    def excluded(self) -> tuple[Prefix, ...]:
        old = (*self.inet4_route_exclude_address, *self.inet6_route_exclude_address)
        return (*self.route_exclude_address, *old)

    @property
    def families(self) -> tuple[Literal[4, 6], ...]:
        """Those with an address."""
        there = {prefix.ip.version for prefix in self.addresses}
        every: tuple[Literal[4, 6], ...] = (4, 6)
        return tuple(family for family in every if family in there)

    @property
    def loopback(self) -> list[IP]:
        try:
            return [ip_address(text) for text in as_list(self.loopback_address)]
        except ValueError as error:
            raise ValueError(f"loopback_address: {error}") from None

    @property
    def included_uids(self) -> list[tuple[int, int]]:
        return [(uid, uid) for uid in as_list(self.include_uid)] + _ranges("include_uid_range", self.include_uid_range)

    @property
    def excluded_uids(self) -> list[tuple[int, int]]:
        return [(uid, uid) for uid in as_list(self.exclude_uid)] + _ranges("exclude_uid_range", self.exclude_uid_range)

    @property
    def table(self) -> int:
        return self.iproute2_table_index or 2022

    @property
    def rule(self) -> int:
        return self.iproute2_rule_index or 9000

    @property
    def input_mark(self) -> int:
        return int(self.auto_redirect_input_mark) or 0x2023

    @property
    def output_mark(self) -> int:
        return int(self.auto_redirect_output_mark) or 0x2024

    @property
    def rule_sets(self) -> list[tuple[str, str]]:
        """(field, tag) of the rule sets that it names."""
        fields = ("route_address_set", "route_exclude_address_set")
        return [(field, tag) for field in fields for tag in as_list(getattr(self, field))]

    @property
    def names_server(self) -> dict[int, IPv4Address | IPv6Address]:
        """Family -> the address under which captured DNS shows itself to the rules: the one after the device's own."""
        found: dict[int, IPv4Address | IPv6Address] = {}
        for prefix in self.addresses:
            found.setdefault(prefix.ip.version, prefix.ip + 1)
        return found

    def notes(self) -> Iterator[tuple[str, str]]:
        """(field, what to write instead) of fields that are accepted for old files."""
        for field, instead in _OLD.items():
            if getattr(self, field):
                yield field, f'deprecated; write "{instead}"'
        if self.gso:
            yield "gso", "deprecated; it is always on where it helps: remove it"
        for field, where in _NOT_HERE.items():
            if getattr(self, field):
                yield field, f"does nothing here ({where}): remove it"

    def clash(self, other: InboundOptions) -> tuple[str, str] | None:
        """Of two tun inbounds of one configuration: (field, why) where they cannot both be."""
        if self.interface_name and self.interface_name == other.interface_name:
            return "interface_name", f'"{self.interface_name}" is the device of another tun inbound'
        if self.auto_route and other.auto_route:
            if self.table == other.table:
                return "iproute2_table_index", f"table {self.table} is another tun inbound's: write another number"
            if abs(self.rule - other.rule) < RULES:
                return "iproute2_rule_index", f"each tun inbound has {RULES} priorities of its own from here on"
            if self.auto_redirect and other.auto_redirect and self.input_mark == other.input_mark:
                return "auto_redirect_input_mark", f"{self.input_mark:#x} is another tun inbound's: write another mark"
        return None


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name) or len(name.encode()) > 15 or name in (".", ".."):
        raise ValueError(f'{field}: "{name}" is not an interface name of at most 15 letters')


def _ranges(field: str, texts: Texts) -> list[tuple[int, int]]:
    found = []
    for text in as_list(texts):
        first, colon, last = text.partition(":")
        try:
            one, two = int(first, 0), int(last, 0)
            if not colon or not 0 <= one <= two <= LAST_UID:
                raise ValueError
        except ValueError:
            raise ValueError(f'{field}: "{text}" is not a range of users; write for example "1000:1999"') from None
        found.append((one, two))
    return found
