"""From rules to boolean expressions over atoms, the marks that rule sets share included. Pure.

The compiler's reading of ``match.py``: where the matcher keeps marks in the subject, this keeps an expression of when
each mark would be set. A property test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, NamedTuple

from gateway.route.item.base import Item
from gateway.route.logic import Expr, both, choose, either, negate
from gateway.route.match import Default, Logical, Rule, Sets

Kind = Literal[
    "inbound", "network", "auth_user", "ip_version", "protocol", "client", "name", "dst", "src", "port",
    "source_port", "process", "never",
]  # fmt: skip
KINDS: dict[str, Kind] = {
    "inbound": "inbound", "network": "network", "auth_user": "auth_user", "ip_version": "ip_version",
    "protocol": "protocol", "client": "client", "domain": "name", "domain_suffix": "name", "domain_keyword": "name",
    "domain_regex": "name", "adguard_domain": "name", "ip_cidr": "dst", "ip_is_private": "dst",
    "source_ip_cidr": "src", "source_ip_is_private": "src", "port": "port", "port_range": "port",
    "source_port": "source_port", "source_port_range": "source_port", "process_name": "process",
    "process_path": "process", "process_path_regex": "process", "user": "process", "user_id": "process",
    "query_type": "never",
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
        self.atoms: list[Atom] = []
        self._numbers: dict[Hashable, int] = {}

    def rule(self, rule: Rule) -> Expr:
        """A top-level rule. Raises KeyError for an unknown rule set."""
        return self._rule(rule, Marks())[0]

    def _atom(self, item: Item, match_source: bool) -> int:
        kind: Kind = "src" if item.key == "ip_cidr" and match_source else KINDS[item.key]
        identity = (kind, getattr(item, "set", None) if kind in ("dst", "src") else item.atom)
        number = self._numbers.setdefault(identity, len(self.atoms))
        if number == len(self.atoms):
            self.atoms.append(Atom(kind, item))
        return number

    def _rule(self, rule: Rule, marks: Marks) -> tuple[Expr, Marks]:
        return self._logical(rule, marks) if isinstance(rule, Logical) else self._default(rule, marks)

    def _default(self, rule: Default, marks: Marks) -> tuple[Expr, Marks]:
        if not rule.items and not rule.rule_set:
            return True, marks
        for group, members in rule.groups:
            before = getattr(marks, group)
            found = either(*(self._atom(item, marks.match_source) for item in members))
            marks = marks._replace(**{group: either(before, found), "tested": either(marks.tested, negate(before))})
        alive: Expr = True
        if rule.plain:
            marks = marks._replace(tested=True)
            alive = both(*(self._atom(item, marks.match_source) for item in rule.plain))
        held: Expr = alive
        if rule.rule_set:
            inner, after = self._sets(rule, marks._replace(match_source=rule.match_source))
            marks = _merge(alive, after, marks)
            held = both(alive, inner)
        held = both(held, *(getattr(marks, group) for group, _ in rule.groups))
        return (negate(both(held, marks.tested)) if rule.invert else held), marks

    def _sets(self, rule: Default, marks: Marks) -> tuple[Expr, Marks]:
        """Any rule of any of the sets, tried in order; later ones leave marks only where no earlier one held."""
        found: Expr = False
        for tag in rule.rule_set:
            for inner in self.sets[tag]:
                held, after = self._rule(inner, marks)
                marks = _merge(negate(found), after, marks)
                found = either(found, held)
        return found, marks

    def _logical(self, rule: Logical, marks: Marks) -> tuple[Expr, Marks]:
        results: list[Expr] = []
        going: Expr = True
        for child in rule.rules:
            held, after = self._rule(child, Marks())
            marks = _merge(going, after, marks)
            results.append(held)
            going = both(going, held if rule.mode == "and" else negate(held))
        whole = both(*results) if rule.mode == "and" else either(*results)
        return (negate(whole) if rule.invert else whole), marks


def _merge(condition: Expr, yes: Marks, no: Marks) -> Marks:
    return Marks(*(choose(condition, a, b) for a, b in zip(yes[:5], no[:5], strict=True)), yes.match_source)
