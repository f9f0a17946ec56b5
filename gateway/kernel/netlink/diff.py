"""Addresses, routes and rules as data, and the steps from what is there to what is wanted. Pure.

What is ours carries our number: addresses ``IFA_PROTO`` (Linux 5.18), routes and rules their protocol. Only that is
ever deleted. A step that makes or changes something has an inverse, plain JSON-able data for the journal; deleting what
was ours needs none, since it was not there before us::

    {"kind": "address", "op": "delete", "interface", "address": "192.0.2.5/24"}
    {"kind": "address", "op": "set", ... , "valid": seconds or null, "preferred": ..., "proto": number}
    {"kind": "route", "op": "delete", "interface", "destination", "table", "metric", "proto", "type"}
    {"kind": "rule", "op": "delete", "family", "priority", "mark", "mask", "table", and what else the rule asks}
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

from gateway.core.address import IP
from gateway.kernel import mark

DHCP = 16
"""RTPROT_DHCP, of lease routes."""
OWN = mark.PROTO
OURS = frozenset((DHCP, OWN))
MAIN = 254
IP6_METRIC = 1024
"""What the kernel makes of an IPv6 metric of 0."""
SLACK = 2
"""Seconds by which a lifetime may differ before it is written again."""

Inverse = dict[str, Any]
RuleAction = Literal["lookup", "goto", "nop", "unreachable"]


@dataclass(frozen=True, slots=True)
class Address:
    """``valid`` and ``preferred`` in seconds from now, None = for ever. ``proto`` is IFA_PROTO, 0 = not tagged."""

    interface: str
    ip: IP
    prefix: int
    valid: int | None = None
    preferred: int | None = None
    proto: int = OWN
    no_prefix_route: bool = False

    @property
    def key(self) -> tuple[IP, int]:
        return self.ip, self.prefix


@dataclass(frozen=True, slots=True)
class Route:
    """``gateway`` None = on the link. ``onlink``: the gateway is reached without a route to it. ``type`` as ip-route(8)
    has it."""

    interface: str
    destination: IPv4Network | IPv6Network
    gateway: IP | None = None
    metric: int = 0
    table: int = MAIN
    proto: int = OWN
    source: IP | None = None
    onlink: bool = False
    type: Literal["unicast", "local"] = "unicast"

    @property
    def key(self) -> tuple[IPv4Network | IPv6Network, int, int]:
        return self.destination, self.table, self.metric


@dataclass(frozen=True, slots=True)
class Rule:
    """An entry of ip-rule(8). ``mark``/``mask`` 0/0 asks no mark. ``iif``: the interface it came in through, "lo" for
    what starts here. ``source`` and ``destination`` are prefixes as text, ``uids`` "first-last", ``port`` that of the
    destination; ``invert`` is "not". ``suppress``: shorter prefixes of the table do not count, -1 = all do. ``target``:
    the priority to which ``goto`` jumps."""

    family: Literal[4, 6]
    priority: int
    mark: int = 0
    mask: int = 0
    table: int = 0
    proto: int = OWN
    action: RuleAction = "lookup"
    target: int = 0
    iif: str = ""
    oif: str = ""
    source: str = ""
    destination: str = ""
    uids: str = ""
    port: int = 0
    invert: bool = False
    suppress: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    op: Literal["add", "set", "delete"]
    item: Address | Route | Rule
    inverse: Inverse | None = None


def normal(route: Route) -> Route:
    """As the kernel will show it."""
    if route.destination.version == 6 and not route.metric:
        return replace(route, metric=IP6_METRIC)
    return route


def addresses(have: Iterable[Address], want: Iterable[Address]) -> list[Step]:
    """Additions and refreshed lifetimes first, deletions last: the interface never stands without an address."""
    there = {item.key: item for item in have}
    wanted = {item.key: item for item in want}
    steps = []
    for key, item in wanted.items():
        old = there.get(key)
        if old is None:
            steps.append(Step("add", item, _delete_address(item)))
        elif old.proto != item.proto:
            steps.append(Step("set", item, _set_address(old)))
        elif not _close(old.valid, item.valid) or not _close(old.preferred, item.preferred):
            steps.append(Step("set", item, _delete_address(item)))
    steps += [Step("delete", old) for key, old in there.items() if old.proto == OWN and key not in wanted]
    return steps


def _close(one: int | None, other: int | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= SLACK


def _delete_address(item: Address) -> Inverse:
    return {"kind": "address", "op": "delete", "interface": item.interface, "address": f"{item.ip}/{item.prefix}"}


def _set_address(old: Address) -> Inverse:
    lifetimes = {"valid": old.valid, "preferred": old.preferred, "proto": old.proto}
    return _delete_address(old) | {"op": "set"} | lifetimes


def routes(have: Iterable[Route], want: Iterable[Route]) -> list[Step]:
    """A route of ours to the same destination with the same metric is replaced in one step, so there is no moment
    without it. Deletions last. A foreign route with the same key is left alone: adding beside it will fail (EEXIST)."""
    there = {item.key: item for item in have if item.proto in OURS}
    wanted = {item.key: item for item in map(normal, want)}
    steps = []
    for key, item in sorted(wanted.items(), key=lambda entry: _needs(entry[1])):
        old = there.get(key)
        if old is None:
            steps.append(Step("add", item, _delete_route(item)))
        elif old != item:
            steps.append(Step("set", item, _delete_route(item)))
    steps += [Step("delete", old) for key, old in there.items() if key not in wanted]
    return steps


def _needs(route: Route) -> tuple[bool, int]:
    """On-link routes first, then narrow ones: later gateways may lie behind them."""
    return route.gateway is not None, -route.destination.prefixlen


def _delete_route(item: Route) -> Inverse:
    return {
        "kind": "route", "op": "delete", "interface": item.interface, "destination": str(item.destination),
        "table": item.table, "metric": item.metric, "proto": item.proto, "type": item.type,
    }  # fmt: skip


def rules(have: Collection[Rule], want: Iterable[Rule]) -> list[Step]:
    """Rules of protocol ``OWN`` that are not wanted go. Equal ones that stand in another order than ``want`` are left
    so."""
    wanted = tuple(want)
    steps = [add(item) for item in wanted if item not in have]
    return steps + [Step("delete", old) for old in have if old.proto == OWN and old not in wanted]


def add(rule: Rule) -> Step:
    return Step("add", rule, _delete_rule(rule))


def _delete_rule(item: Rule) -> Inverse:
    inverse: Inverse = {
        "kind": "rule", "op": "delete", "family": item.family, "priority": item.priority, "mark": item.mark,
        "mask": item.mask, "table": item.table,
    }  # fmt: skip
    more = {
        field.name: getattr(item, field.name) for field in fields(Rule) if getattr(item, field.name) != field.default
    }
    return {**more, **inverse}


def rule_of(step: Inverse) -> Rule:
    """The rule that an inverse deletes."""
    return Rule(**{field.name: step[field.name] for field in fields(Rule) if field.name in step})


def steering() -> tuple[tuple[Route, ...], tuple[Rule, ...]]:
    """What delivers packets with the routing bit to this host: a rule and a local default route, both families."""
    anywhere = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    local = tuple(normal(Route("lo", every, table=mark.TABLE, type="local")) for every in anywhere)
    families: tuple[Literal[4, 6], ...] = (4, 6)
    lookups = tuple(Rule(family, mark.RULE_PRIORITY, mark.ROUTE, mark.ROUTE, mark.TABLE) for family in families)
    return local, lookups


def family_of(item: Address | Route | Rule) -> Literal[4, 6]:
    match item:
        case Rule():
            return item.family
        case Address():
            return 6 if isinstance(item.ip, IPv6Address) else 4
        case Route():
            return 6 if item.destination.version == 6 else 4
