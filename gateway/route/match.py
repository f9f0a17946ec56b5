"""Whether a rule holds for a flow or a DNS question: the judge of what a configuration means. Pure.

A default rule is, with values of one key ORed::

    (domain* | ip_cidr | ip_is_private) & (port*) & (source_ip*) & (source_port*) & every other item & rule_set

The rules inside a rule set share the outer rule's groups: what has matched outside counts as matched inside, and what
matched inside counts outside. ``invert`` turns the result, except that of a rule in which nothing was tested.
Follows the observable behaviour of sing-box 1.12.12, its order of evaluation included. DNS rules use the same matcher:
they fill ``query_type``, and set ``ignore_addresses`` where the answer is not known yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from gateway.core.address import IP
from gateway.core.flow import Device, Findings, Flow, Process
from gateway.route.item.base import Group, Item
from gateway.route.item.ipset import Point
from gateway.route.item.names import NameItem

Sets = Mapping[str, Sequence["Rule"]]
"""Rule set tag to its rules."""


GROUPS: dict[Group, int] = {"source": 1, "source_port": 2, "destination": 4, "port": 8}
"""Groups in order of testing, each with its bit."""


@lru_cache(4096)
def point(ip: IP) -> Point:
    return (ip.version, int(ip))


class Subject:
    """What rules ask about, and the matcher's own notes while it walks one rule."""

    # Defaults stand in the class: a flow sets less than half of them, and making this is a cost of every flow.
    inbound = network = auth_user = protocol = client = name = ""
    source: Point | None = None
    destination: Point | None = None
    addresses: tuple[Point, ...] = ()
    source_port = port = ip_version = 0
    process: Process | None = None
    device: Device | None = None
    query_type = -1
    ignore_addresses = False
    """DNS: the answer is not known yet, so address items count as matched."""
    match_source = accept_empty = tested = False
    matched = 0

    def __init__(self, sets: Sets | None = None) -> None:
        self.sets: Sets = sets or {}

    def reset(self) -> None:
        """Before each top-level rule and before each child of a logical rule. ``matched`` has a bit of ``GROUPS`` for
        each group that has matched."""
        self.match_source = self.accept_empty = self.tested = False
        self.matched = 0

    @classmethod
    def of(cls, flow: Flow, findings: Findings, sets: Sets) -> Subject:
        self = cls(sets)
        self.inbound, self.network, self.auth_user = flow.inbound, flow.network, flow.user
        self.process, self.device = flow.process, flow.device
        origin, self.source_port = flow.source
        host, self.port = flow.destination
        if not isinstance(origin, str):
            self.source = point(origin)
        if not isinstance(host, str):
            self.destination = point(host)
            self.ip_version = self.destination[0]
            self.learn("", findings)
        else:
            self.learn(host, findings)
        return self

    def learn(self, domain: str, findings: Findings) -> None:
        """Take over what was found out. A flow's name is the destination's own (``domain``), else the sniffed one, else
        the learned one that this client resolved last."""
        self.protocol, self.client = findings.protocol, findings.client
        name = domain or findings.domain or (findings.learned[0] if findings.learned else "")
        if name:
            self.name = name.lower()
        elif self.name:
            self.name = ""
        if findings.addresses or self.addresses:
            self.addresses = tuple(point(ip) for ip in findings.addresses)


class Default:
    """A rule of items. ``rule_set`` are tags, looked up in the subject's sets when matching."""

    __slots__ = (
        "accept_empty",
        "all_bits",
        "bits",
        "groups",
        "invert",
        "items",
        "match_source",
        "named",
        "plain",
        "rule_set",
        "tests",
    )

    def __init__(
        self,
        items: Sequence[Item],
        rule_set: tuple[str, ...] = (),
        *,
        match_source: bool = False,
        accept_empty: bool = False,
        invert: bool = False,
    ) -> None:
        self.items = tuple(items)
        self.rule_set = rule_set
        self.match_source = match_source
        self.accept_empty = accept_empty
        self.invert = invert
        self.plain = tuple(item for item in items if not item.group)
        self.groups = tuple(
            (group, members) for group in GROUPS if (members := tuple(item for item in items if item.group == group))
        )
        self.bits = tuple((GROUPS[group], members) for group, members in self.groups)
        self.tests = tuple((item.match,) for item in self.plain) + tuple(
            tuple(item.match for item in members) for _, members in reversed(self.groups)
        )
        self.all_bits = sum(bit for bit, _ in self.bits)
        self.named = (
            not invert
            and not rule_set
            and any(all(isinstance(item, NameItem) for item in members) for _, members in self.groups)
        )
        """It cannot hold for a flow without a name."""

    def match(self, subject: Subject) -> bool:
        """Leaves its marks in the subject, as an inner rule of a rule set must. Raises KeyError for an unknown set."""
        if not self.items and not self.rule_set:
            return True
        bits, needed = self.bits, self.all_bits
        if subject.ignore_addresses:
            bits = self._without_addresses()
            needed = sum(bit for bit, _ in bits)
        for bit, members in bits:
            if not subject.matched & bit:
                subject.tested = True
                for item in members:
                    if item.match(subject):
                        subject.matched |= bit
                        break
        for item in self.plain:
            subject.tested = True
            if not item.match(subject):
                return self.invert
        if self.rule_set:
            subject.match_source, subject.accept_empty = self.match_source, self.accept_empty
            if not any(match_any(subject.sets[tag], subject) for tag in self.rule_set):
                return self.invert
        # read again: a logical rule inside a set has reset the marks, as it does in sing-box
        if subject.matched & needed != needed:
            return self.invert
        return not self.invert or not subject.tested

    def _without_addresses(self) -> tuple[tuple[int, tuple[Item, ...]], ...]:
        out = []
        for bit, members in self.bits:
            if bit == GROUPS["destination"]:
                members = tuple(item for item in members if item.key not in ("ip_cidr", "ip_is_private"))
                if not members:
                    continue
            out.append((bit, members))
        return tuple(out)

    def __str__(self) -> str:
        parts = [str(item) for item in self.items]
        if self.rule_set:
            parts.append("rule_set=" + ",".join(self.rule_set))
        text = " ".join(parts) or "everything"
        return f"!({text})" if self.invert else text


class Logical:
    """``and`` or ``or`` of rules; never empty."""

    __slots__ = ("invert", "mode", "rules")
    named = False

    def __init__(self, mode: Literal["and", "or"], rules: Sequence[Rule], *, invert: bool = False) -> None:
        self.mode = mode
        self.rules = tuple(rules)
        self.invert = invert

    def match(self, subject: Subject) -> bool:
        wanted = self.mode == "or"
        for rule in self.rules:
            subject.reset()
            if rule.match(subject) == wanted:
                return wanted != self.invert
        return (not wanted) != self.invert

    def __str__(self) -> str:
        text = (" && " if self.mode == "and" else " || ").join(f"({rule})" for rule in self.rules)
        return f"!({text})" if self.invert else text


Rule = Default | Logical


def match_any(rules: Sequence[Rule], subject: Subject) -> bool:
    """A rule set holds where any of its rules does; their marks are shared."""
    return any(rule.match(subject) for rule in rules)


def matches(rule: Rule, subject: Subject) -> bool:
    """A top-level rule, with fresh notes. Raises KeyError for an unknown rule set."""
    if not isinstance(rule, Default) or rule.rule_set or not rule.items or subject.ignore_addresses:
        subject.reset()
        return rule.match(subject)
    # nobody will read the notes of such a rule: the first part that does not hold settles it
    if subject.match_source:
        subject.match_source = False
    for tests in rule.tests:
        for test in tests:
            if test(subject):
                break
        else:
            return rule.invert
    return not rule.invert


def items(rule: Rule) -> list[Item]:
    """All items of a rule and its children, without those of rule sets."""
    if isinstance(rule, Default):
        return list(rule.items)
    return [item for child in rule.rules for item in items(child)]


def set_tags(rule: Rule) -> list[str]:
    """All rule sets that a rule and its children name."""
    if isinstance(rule, Default):
        return list(rule.rule_set)
    return [tag for child in rule.rules for tag in set_tags(child)]
