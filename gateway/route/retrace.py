"""Which rule sent a flow that the kernel carries, as far as its packets leave no doubt. Pure.

The kernel has only the verdict, direct. So no rule that says otherwise can have held; of those that say direct the
first that holds is meant, unless one before it asks for what a packet does not show (a name that was not learned, a
protocol) and might have held too.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.flow import Findings, Flow
from gateway.route.action import Bypass, Route
from gateway.route.engine import Engine
from gateway.route.item.base import Item
from gateway.route.item.names import NameItem
from gateway.route.match import Default, Rule, Sets, Subject, matches

SNIFFED = frozenset({"protocol", "client"})
OWNER = frozenset(
    {"process_name", "process_path", "process_path_regex", "user", "user_id", "group", "group_id", "cgroup"}
)
Hidden = Callable[[Item], bool]


def retrace(
    engine: Engine, flow: Flow, names: tuple[str, ...], direct: Callable[[str], bool], *, owned: bool
) -> tuple[int, str] | None:  # fmt: skip
    """The rule's index and its outbound ("" for ``bypass``); -1 and ``final``; None where that is not certain.

    ``names``: learned ones of the destination. ``direct``: whether an outbound's flows may be the kernel's. ``owned``:
    the flow's process is known, or it is another host's."""
    findings = Findings(learned=names[:1])
    subject = Subject.of(flow, findings, engine.sets)

    def hidden(item: Item) -> bool:
        if isinstance(item, NameItem):
            return len(names) != 1
        return item.key in SNIFFED or (item.key in OWNER and not owned)

    stays = engine.stays(subject)
    for index, (match, action, _) in enumerate(engine.rules):
        if isinstance(action, Bypass) and index == stays:
            return index, ""
        if isinstance(action, Route | Bypass) and direct(action.outbound):
            if not possible(match, subject, hidden, engine.sets):
                continue
            certain = not asks(match, hidden, engine.sets) and matches(match, subject)
            return (index, action.outbound) if certain else None
    return (-1, engine.final) if direct(engine.final) else None


def asks(rule: Rule, hidden: Hidden, sets: Sets) -> bool:
    """Whether a rule, with its rule sets, asks for something hidden. Raises KeyError for an unknown set."""
    if not isinstance(rule, Default):
        return any(asks(child, hidden, sets) for child in rule.rules)
    if any(hidden(item) for item in rule.items):
        return True
    return any(asks(child, hidden, sets) for tag in rule.rule_set for child in sets[tag])


def possible(rule: Rule, subject: Subject, hidden: Hidden, sets: Sets) -> bool:
    """Whether it may hold, whatever is hidden. True more often than that for inverted rules, and for rule sets."""
    if not asks(rule, hidden, sets):
        return matches(rule, subject)
    if rule.invert:
        return True
    if not isinstance(rule, Default):
        some = any if rule.mode == "or" else all
        return some(possible(child, subject, hidden, sets) for child in rule.rules)
    if rule.rule_set:  # its rules share the groups
        return all(hidden(item) or item.match(subject) for item in rule.plain)
    return all(hidden(item) or item.match(subject) for item in rule.plain) and all(
        any(hidden(item) or item.match(subject) for item in members) for _, members in rule.groups
    )
