"""DNS rules: a question to the servers that are asked for it, in order. Pure.

Asking is the route rules' matcher (``route.match``); the actions are DNS's own. A rule with address items
(``ip_cidr``, ``ip_is_private``, or a rule set that has them) is held against the answer: where that fails, the walk
goes on behind it. Follows the observable behaviour of sing-box 1.12.12.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from gateway.config import anchor
from gateway.config.decode import decode
from gateway.config.shared import Options, Strategy
from gateway.core.address import IP
from gateway.core.errors import ConfigError
from gateway.core.flow import Flow
from gateway.dns.message import AAAA, HTTPS, A, Question
from gateway.route.item.table import DEVICE, ITEMS, OURS
from gateway.route.match import Logical, Sets, Subject, items, matches, point, set_tags
from gateway.route.match import Rule as Match
from gateway.route.options import parse_match

ADDRESS_KEYS = frozenset({"ip_cidr", "ip_is_private"})
QUESTION_KEYS = frozenset(
    {"domain", "domain_suffix", "domain_keyword", "domain_regex", "query_type", "ip_version"} | ADDRESS_KEYS
)
"""Items that ask about the question and the answer alone, not about who asks."""


class RouteOptions(Options):
    """``route-options``, also part of ``route``. ``rewrite_ttl`` in seconds; "" and None leave what is."""

    strategy: Strategy = ""
    disable_cache: bool = False
    rewrite_ttl: int | None = None


class Route(RouteOptions):
    server: str = ""


class Reject(Options):
    """``default`` answers REFUSED, ``drop`` nothing. ``no_drop`` changes nothing: sing-box 1.12.12 counts refusals of
    its own lookups alone, where both are a failure; a client is REFUSED however often it asks."""

    method: Literal["", "default", "drop"] = ""
    no_drop: bool = False


Action = Route | RouteOptions | Reject
ACTIONS: dict[str, tuple[type[Action], str]] = {
    "route": (Route, "DNSRouteActionOptions"),
    "route-options": (RouteOptions, "DNSRouteOptionsActionOptions"),
    "reject": (Reject, "RejectActionOptions"),
}


class Rule(NamedTuple):
    """One entry of ``dns.rules``; ``path`` is its place in the JSON."""

    match: Match
    action: Action
    path: str = ""


def parse_rule(raw: Any, path: str) -> Rule:
    """One DNS rule. Server tags are the caller's to check. Raises ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError("a rule is an object", path)
    kind = raw.get("action", "") or "route"
    if kind == "predefined":
        raise ConfigError(
            f'action "predefined" exists in sing-box {anchor.VERSION} but is not built yet', f"{path}.action"
        )
    if kind not in ACTIONS:
        raise ConfigError(f'unknown action "{kind}"; actions: {", ".join(ACTIONS)}', f"{path}.action")
    options, object_name = ACTIONS[kind]
    ours = set(options.__struct_fields__)
    done = decode(options, {key: raw[key] for key in raw if key in ours}, path, object_name)
    if isinstance(done, Route) and not done.server:
        raise ConfigError('missing "server" (or another "action")', path)
    if isinstance(done, RouteOptions) and done == RouteOptions():
        raise ConfigError("a route-options action without options", path)
    if isinstance(done, RouteOptions) and not 0 <= (done.rewrite_ttl or 0) < 1 << 31:
        raise ConfigError("a TTL is a number of seconds from 0 to 2147483647", f"{path}.rewrite_ttl")
    asked = {key: value for key, value in raw.items() if key not in ours and key != "action"}
    if not set(asked) - {"type", "invert"} and isinstance(done, Route):
        raise ConfigError("missing conditions", path)
    objects = ("LogicalDNSRule" if raw.get("type") == "logical" else "DefaultDNSRule", object_name)
    keys = frozenset(ITEMS) & (anchor.fields("DefaultDNSRule") | OURS)
    return Rule(parse_match(asked, path, keys, objects, frozenset(ours)), done, path)


class Step(NamedTuple):
    """Ask ``server``; ``filter`` (None: take any answer) judges what it says. ``rule``: index, -1 for ``final``."""

    rule: int
    server: str
    strategy: Strategy = ""
    disable_cache: bool = False
    rewrite_ttl: int | None = None
    filter: Match | None = None


Plan = tuple[Step | Reject, ...]
"""What to try in order; the last one has no filter."""


class Rules:
    """The ordered rules of one configuration. ``final`` is a server's tag."""

    def __init__(self, rules: Sequence[Rule], final: str, strategy: Strategy = "", sets: Sets | None = None) -> None:
        self.rules = tuple(rules)
        self.final = final
        self.strategy: Strategy = strategy
        self.sets: Sets = sets or {}
        self._filters = tuple(_limits(rule.match, self.sets) for rule in self.rules)
        self.by_client = any(_asks_more(rule.match, self.sets) for rule in self.rules)
        """Whether who asks can change the answer; then an answer may not be shared between plans."""
        self.by_device = any(_keys(rule.match, self.sets) & DEVICE for rule in self.rules)
        """Whether a rule asks for the client's device."""

    def subject(self, question: Question, flow: Flow | None) -> Subject:
        """What rules ask about. The address a client asked at is no destination."""
        subject = Subject(self.sets)
        subject.name = question.name
        subject.query_type = question.type
        subject.ip_version = {A: 4, AAAA: 6}.get(question.type, 0)
        subject.ignore_addresses = True
        if flow is not None:
            subject.inbound, subject.network, subject.auth_user = flow.inbound, flow.network, flow.user
            subject.protocol, subject.process, subject.device = "dns", flow.process, flow.device
            subject.source_port = flow.source.port
            if flow.source.ip is not None:
                subject.source = point(flow.source.ip)
        return subject

    def plan(self, subject: Subject, without: frozenset[str] = frozenset()) -> Plan:
        """Rules that lead to a server of ``without`` are passed by. Raises KeyError for a rule set that does not
        exist."""
        steps: list[Step | Reject] = []
        strategy, disable_cache, rewrite_ttl = self.strategy, False, None
        for index, rule in enumerate(self.rules):
            filtering = self._filters[index]
            if filtering and subject.query_type not in (A, AAAA, HTTPS):
                continue
            if not matches(rule.match, subject):
                continue
            action = rule.action
            if isinstance(action, Reject):
                if not filtering:
                    return (*steps, action)
                continue  # there is no answer to hold it against
            if isinstance(action, Route):
                if action.server in without:
                    continue
                steps.append(
                    Step(
                        index,
                        action.server,
                        action.strategy or strategy,
                        action.disable_cache or disable_cache,
                        action.rewrite_ttl if action.rewrite_ttl is not None else rewrite_ttl,
                        rule.match if filtering else None,
                    )
                )
                if not filtering:
                    return tuple(steps)
            else:
                strategy = action.strategy or strategy
                disable_cache |= action.disable_cache
                rewrite_ttl = action.rewrite_ttl if action.rewrite_ttl is not None else rewrite_ttl
        return (*steps, Step(-1, self.final, strategy, disable_cache, rewrite_ttl))


def accepts(step: Step, subject: Subject, found: Sequence[IP]) -> bool:
    """Whether the filter of ``step`` takes an answer with these addresses; an empty one never."""
    if step.filter is None:
        return True
    if not found:
        return False
    subject.addresses = tuple(point(ip) for ip in found)
    subject.ignore_addresses = False
    try:
        return matches(step.filter, subject)
    finally:
        subject.addresses = ()
        subject.ignore_addresses = True


def _keys(match: Match, sets: Sets) -> set[str]:
    """Items of a rule and of the rule sets that it names."""
    found = {item.key for item in items(match)}
    for tag in set_tags(match):
        for rule in sets[tag]:
            found |= {item.key for item in items(rule)}
    return found


def _limits(match: Match, sets: Sets) -> bool:
    """Whether the answer's addresses can decide; a rule set that is held against the client asks nothing of them."""
    if isinstance(match, Logical):
        return any(_limits(child, sets) for child in match.rules)
    if any(item.key in ADDRESS_KEYS for item in match.items):
        return True
    return not match.match_source and any(_limits(rule, sets) for tag in match.rule_set for rule in sets[tag])


def _asks_more(match: Match, sets: Sets) -> bool:
    return bool(_keys(match, sets) - QUESTION_KEYS) or _source_sets(match)


def _source_sets(match: Match) -> bool:
    """Whether a rule set's addresses are held against the client (``rule_set_ip_cidr_match_source``)."""
    if isinstance(match, Logical):
        return any(_source_sets(child) for child in match.rules)
    return match.match_source
