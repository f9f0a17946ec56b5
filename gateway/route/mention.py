"""Whether some rule names an address: in ``ip_cidr``, by itself or by a prefix. Rule sets, which hold the addresses of
half the world, name nobody. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.core.address import IP
from gateway.route.item.ip_cidr import IPCIDR
from gateway.route.item.ipset import Point
from gateway.route.match import Logical, Rule, point
from gateway.route.options import RouteRule


def names_address(rules: Iterable[RouteRule], address: IP) -> bool:
    """``rules`` of ``route.rules``."""
    wanted = point(address)
    return any(_mentions(rule.match, wanted) for rule in rules)


def _mentions(rule: Rule, wanted: Point) -> bool:
    if isinstance(rule, Logical):
        return any(_mentions(child, wanted) for child in rule.rules)
    items = (item for _, members in rule.groups for item in members)
    return any(isinstance(item, IPCIDR) and wanted in item.set for item in items)
