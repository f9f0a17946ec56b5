"""JSON key to item, in sing-box's order of testing. Pure."""

from __future__ import annotations

from gateway.route.item.auth_user import AuthUser
from gateway.route.item.base import Item
from gateway.route.item.cgroup import Cgroup
from gateway.route.item.client import Client
from gateway.route.item.domain import Domain
from gateway.route.item.domain_keyword import DomainKeyword
from gateway.route.item.domain_regex import DomainRegex
from gateway.route.item.domain_suffix import DomainSuffix
from gateway.route.item.group import Group
from gateway.route.item.group_id import GroupID
from gateway.route.item.inbound import Inbound
from gateway.route.item.ip_cidr import IPCIDR
from gateway.route.item.ip_is_private import IPIsPrivate
from gateway.route.item.ip_version import IPVersion
from gateway.route.item.network import Network
from gateway.route.item.port import Port
from gateway.route.item.port_range import PortRange
from gateway.route.item.process_name import ProcessName
from gateway.route.item.process_path import ProcessPath
from gateway.route.item.process_path_regex import ProcessPathRegex
from gateway.route.item.protocol import Protocol
from gateway.route.item.query_type import QueryType
from gateway.route.item.source_hostname import SourceHostname
from gateway.route.item.source_interface import SourceInterface
from gateway.route.item.source_ip_cidr import SourceIPCIDR
from gateway.route.item.source_ip_is_private import SourceIPIsPrivate
from gateway.route.item.source_mac_address import SourceMACAddress
from gateway.route.item.source_port import SourcePort
from gateway.route.item.source_port_range import SourcePortRange
from gateway.route.item.user import User
from gateway.route.item.user_id import UserID

_ORDER: tuple[type[Item], ...] = (
    Inbound, IPVersion, QueryType, Network, AuthUser, Protocol, Client, Domain, DomainSuffix, DomainKeyword,
    DomainRegex, SourceIPCIDR, SourceIPIsPrivate, IPCIDR, IPIsPrivate, SourcePort, SourcePortRange, Port, PortRange,
    ProcessName, ProcessPath, ProcessPathRegex, User, UserID, Group, GroupID, Cgroup,
    SourceMACAddress, SourceHostname, SourceInterface,
)  # fmt: skip

ITEMS: dict[str, type[Item]] = {kind.key: kind for kind in _ORDER}

DEVICE = frozenset({"source_mac_address", "source_hostname", "source_interface"})
"""Keys that ask for the flow's device."""

OURS = frozenset({"group", "group_id", "cgroup"}) | DEVICE
"""Keys that sing-box 1.12 does not have, for route rules and DNS rules: binary rule sets have no code for them."""

HEADLESS: frozenset[str] = frozenset({
    "query_type", "network", "domain", "domain_suffix", "domain_keyword", "domain_regex", "source_ip_cidr", "ip_cidr",
    "source_port", "source_port_range", "port", "port_range", "process_name", "process_path", "process_path_regex",
})  # fmt: skip
"""Keys that a rule of a rule set may hold."""
