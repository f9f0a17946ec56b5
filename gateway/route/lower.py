"""From rules to boolean expressions over atoms, the marks that rule sets share included. Pure.

The compiler's reading of ``match.py``: where the matcher keeps marks in the subject, this keeps an expression of when
each mark would be set. A property test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

from gateway.route.item.base import Item
from gateway.route.logic import Expr, Space
from gateway.route.match import Default, Logical, Rule, Sets

Kind = Literal[
    "inbound", "network", "auth_user", "ip_version", "protocol", "client", "name", "dst", "src", "port",
    "source_port", "process", "device", "never",
]  # fmt: skip
KINDS: dict[str, Kind] = {
    "inbound": "inbound", "network": "network", "auth_user": "auth_user", "ip_version": "ip_version",
    "protocol": "protocol", "client": "client", "domain": "name", "domain_suffix": "name", "domain_keyword": "name",
    "domain_regex": "name", "adguard_domain": "name", "ip_cidr": "dst", "ip_is_private": "dst",
    "source_ip_cidr": "src", "source_ip_is_private": "src", "port": "port", "port_range": "port",
    "source_port": "source_port", "source_port_range": "source_port", "process_name": "process",
    "process_path": "process", "process_path_regex": "process", "user": "process", "user_id": "process",
    "group": "process", "group_id": "process", "cgroup": "process", "source_mac_address": "device",
    "source_hostname": "device", "source_interface": "device", "query_type": "never",
}  # fmt: skip


class Atom(NamedTuple):
    kind: Kind
    item: Item


class Marks(NamedTuple):
    """When each group has matched, and when anything was tested. ``match_source`` is known at each place."""

    source: Expr = False
    source_port: Expr = False
    destination: Expr = False
    port: Expr = False
    tested: Expr = False
    match_source: bool = False


class Lowering:
    """Numbers the atoms of a configuration while it turns its rules into expressions."""

    def __init__(self, sets: Sets) -> None:
        self.sets = sets
        self.space = Space()
        self.atoms: dict[int, Atom] = {}
        self._numbers: dict[Hashable, int] = {}

    def rule(self, rule: Rule) -> Expr:
        """A top-level rule. Raises KeyError for an unknown rule set."""
        return self._rule(rule, Marks())[0]

    def _atom(self, item: Item, match_source: bool) -> Expr:
        kind: Kind = "src" if item.key == "ip_cidr" and match_source else KINDS[item.key]
        identity = (kind, getattr(item, "set", None) if kind in ("dst", "src") else item.atom)
        number = self._numbers.setdefault(identity, len(self.atoms) + 1)
        self.atoms.setdefault(number, Atom(kind, item))
        return self.space.atom(number)

    def _rule(self, rule: Rule, marks: Marks) -> tuple[Expr, Marks]:
        return self._logical(rule, marks) if isinstance(rule, Logical) else self._default(rule, marks)

    def _default(self, rule: Default, marks: Marks) -> tuple[Expr, Marks]:
        if not rule.items and not rule.rule_set:
            return True, marks
        for group, members in rule.groups:
            before: Expr = getattr(marks, group)
            found = self.space.either(*(self._atom(item, marks.match_source) for item in members))
            changed: dict[str, Any] = {
                group: self.space.either(before, found),
                "tested": self.space.either(marks.tested, self.space.negate(before)),
            }
            marks = marks._replace(**changed)
        alive: Expr = True
        if rule.plain:
            marks = marks._replace(tested=True)
            alive = self.space.both(*(self._atom(item, marks.match_source) for item in rule.plain))
        held: Expr = alive
        if rule.rule_set:
            inner, after = self._sets(rule, marks._replace(match_source=rule.match_source))
            marks = self._merge(alive, after, marks)
            held = self.space.both(alive, inner)
        held = self.space.both(held, *(getattr(marks, group) for group, _ in rule.groups))
        return (self.space.negate(self.space.both(held, marks.tested)) if rule.invert else held), marks

    def _sets(self, rule: Default, marks: Marks) -> tuple[Expr, Marks]:
        """Any rule of any of the sets, tried in order; later ones leave marks only where no earlier one held."""
        found: Expr = False
        for tag in rule.rule_set:
            for inner in self.sets[tag]:
                held, after = self._rule(inner, marks)
                marks = self._merge(self.space.negate(found), after, marks)
                found = self.space.either(found, held)
        return found, marks

    def _logical(self, rule: Logical, marks: Marks) -> tuple[Expr, Marks]:
        results: list[Expr] = []
        going: Expr = True
        for child in rule.rules:
            held, after = self._rule(child, Marks())
            marks = self._merge(going, after, marks)
            results.append(held)
            going = self.space.both(going, held if rule.mode == "and" else self.space.negate(held))
        whole = self.space.both(*results) if rule.mode == "and" else self.space.either(*results)
        return (self.space.negate(whole) if rule.invert else whole), marks

    def _merge(self, condition: Expr, yes: Marks, no: Marks) -> Marks:
        source, source_port, destination, port, tested = (
            self.space.choose(condition, a, b) for a, b in zip(yes[:5], no[:5], strict=True)
        )
        return Marks(source, source_port, destination, port, tested, yes.match_source)
