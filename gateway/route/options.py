"""The ``route`` object: rules, rule sets, defaults. Pure.

A rule is a flat object that mixes what it asks (items) with what it does (action fields); a logical rule nests. So
rules are read by hand (``parse_rule``) into a matcher and an action, everything else by msgspec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from gateway.config import anchor
from gateway.config.decode import decode
from gateway.config.fields import Duration, FwMark, as_list
from gateway.config.shared import DomainResolver, Options
from gateway.config.url import URL
from gateway.core.errors import ConfigError
from gateway.route import action as actions
from gateway.route.action import Action, Overrides, Route, RouteOptions, Sniff
from gateway.route.item.base import Item, texts, truth
from gateway.route.item.table import HEADLESS, ITEMS, OURS
from gateway.route.match import Default, Logical, Rule, set_tags

ACTIONS: dict[str, tuple[type[Action], str]] = {
    "route": (actions.Route, "RouteActionOptions"),
    "bypass": (actions.Bypass, "RouteActionOptions"),
    "route-options": (actions.RouteOptions, "RouteOptionsActionOptions"),
    "reject": (actions.Reject, "RejectActionOptions"),
    "hijack-dns": (actions.HijackDNS, ""),
    "sniff": (actions.Sniff, "RouteActionSniff"),
    "resolve": (actions.Resolve, "RouteActionResolve"),
}
ROUTE_ITEMS = frozenset(ITEMS) - {"query_type"}
SET_KEYS = frozenset({"rule_set", "rule_set_ip_cidr_match_source", "rule_set_ipcidr_match_source"})
OF_TYPE = {"local": ("path",), "remote": ("url", "download_detour", "update_interval")}
"""Fields of one type of rule set alone."""
DAY = 86400
REMOVED = {"geosite", "geoip", "source_geoip"}


class RouteRule(NamedTuple):
    """One entry of ``route.rules``: ``match`` asks, ``action`` does; ``path`` is its place in the JSON."""

    match: Rule
    action: Action
    path: str = ""


class RuleSetOptions(Options, kw_only=True):
    """One entry of ``route.rule_set``. ``rules``: inline, as JSON values; ``path``: local file; ``url``: remote, asked
    through outbound ``download_detour`` ("" is the default one) every ``update_interval``."""

    tag: str
    type: Literal["", "inline", "local", "remote"] = "inline"
    format: Literal["", "source", "binary"] = ""
    path: str = ""
    rules: list[dict[str, Any]] = msgspec.field(default_factory=list)
    url: str = ""
    download_detour: str = ""
    update_interval: Duration = Duration(DAY)

    @property
    def form(self) -> Literal["source", "binary"]:
        """``format``, else what the file's name says."""
        if self.format:
            return self.format
        name = URL.parse(self.url).path if self.type == "remote" else self.path
        return "binary" if name.endswith(".srs") else "source"


class RouteFields(Options):
    """``route`` as msgspec reads it; ``rules`` and ``rule_set`` are read further by ``parse_route``."""

    rules: list[dict[str, Any]] = msgspec.field(default_factory=list)
    rule_set: list[dict[str, Any]] = msgspec.field(default_factory=list)
    final: str = ""
    find_process: bool = False
    find_neighbor: bool = False
    dhcp_lease_files: str | list[str] = msgspec.field(default_factory=list)
    auto_detect_interface: bool = False
    default_interface: str = ""
    default_mark: FwMark = FwMark(0)
    default_domain_resolver: str | DomainResolver = ""


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """``route``, checked: tags of rule sets are known, rules are parsed. Outbound tags are the loader's to check."""

    rules: tuple[RouteRule, ...] = ()
    rule_set: tuple[RuleSetOptions, ...] = ()
    final: str = ""
    find_process: bool = False
    find_neighbor: bool = False
    dhcp_lease_files: tuple[str, ...] = ()
    auto_detect_interface: bool = False
    default_interface: str = ""
    default_mark: int = 0
    default_domain_resolver: str | DomainResolver = ""
    raw: Any = None
    """The JSON value, for ``format``."""


def parse_route(raw: Any, path: str = "route") -> RouteConfig:
    """The ``route`` object. Raises ConfigError with its JSON path."""
    fields = decode(RouteFields, raw, path, "RouteOptions")
    sets = [_rule_set(entry, f"{path}.rule_set[{index}]") for index, entry in enumerate(fields.rule_set)]
    tags: set[str] = set()
    for index, entry in enumerate(sets):
        if entry.tag in tags:
            raise ConfigError(f'rule set tag "{entry.tag}" is used twice', f"{path}.rule_set[{index}].tag")
        tags.add(entry.tag)
    rules = tuple(parse_rule(rule, f"{path}.rules[{index}]") for index, rule in enumerate(fields.rules))
    for rule in rules:
        check_tags(rule.match, tags, rule.path)
    return RouteConfig(
        rules, tuple(sets), fields.final, fields.find_process, fields.find_neighbor,
        tuple(as_list(fields.dhcp_lease_files)), fields.auto_detect_interface, fields.default_interface,
        fields.default_mark, fields.default_domain_resolver, raw,
    )  # fmt: skip


def check_tags(rule: Rule, tags: Iterable[str], path: str) -> None:
    """Raises ConfigError where ``rule`` names a rule set that is not in ``tags``."""
    known = sorted(tags)
    for tag in set_tags(rule):
        if tag not in known:
            raise ConfigError(
                f'no rule set has the tag "{tag}"; tags: {", ".join(known) or "none"}', f"{path}.rule_set"
            )


def _rule_set(raw: dict[str, Any], path: str) -> RuleSetOptions:
    entry = decode(RuleSetOptions, raw, path, "RuleSet")
    if not entry.tag:
        raise ConfigError("a rule set needs a tag", path)
    if entry.type == "local" and not entry.path:
        raise ConfigError('a local rule set needs "path"', path)
    for kind, fields in OF_TYPE.items():
        for field in fields:
            if entry.type != kind and field in raw:
                raise ConfigError(f'"{field}" belongs to a rule set of type "{kind}"', f"{path}.{field}")
    name = entry.path
    if entry.type == "remote":
        try:
            name = URL.parse(entry.url).path
        except ValueError as error:
            raise ConfigError(str(error), f"{path}.url") from None
        if entry.update_interval < 0:
            raise ConfigError('an interval is not negative; write for example "1d"', f"{path}.update_interval")
    if entry.type in ("local", "remote") and not entry.format and not name.endswith((".json", ".srs")):
        raise ConfigError('the name ends neither in .json nor in .srs; write "format": "source" or "binary"', path)
    return entry


def parse_rule(raw: Any, path: str) -> RouteRule:
    """One route rule. Raises ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError("a rule is an object", path)
    kind = raw.get("action", "") or "route"
    if kind not in ACTIONS:
        if kind == "direct":
            raise ConfigError(
                f'action "direct" exists in sing-box {anchor.VERSION} but is not built yet; write "outbound" with the '
                "tag of a direct outbound", f"{path}.action",
            )  # fmt: skip
        raise ConfigError(f'unknown action "{kind}"; actions: {", ".join(ACTIONS)}', f"{path}.action")
    options, object_name = ACTIONS[kind]
    ours = set(options.__struct_fields__)
    done = decode(options, {key: raw[key] for key in raw if key in ours}, path)
    asked = {key: value for key, value in raw.items() if key not in ours and key != "action"}
    _check_action(done, raw, path)
    objects = ("LogicalRule" if raw.get("type") == "logical" else "DefaultRule", object_name)
    return RouteRule(parse_match(asked, path, ROUTE_ITEMS, objects, frozenset(ours)), done, path)


def _check_action(done: Action, raw: dict[str, Any], path: str) -> None:
    if isinstance(done, Route) and not done.outbound:
        raise ConfigError('missing "outbound" (or another "action")', path)
    if isinstance(done, RouteOptions) and done == RouteOptions():
        raise ConfigError("a route-options action without options", path)
    if isinstance(done, Overrides) and not 0 <= done.override_port <= 65535:
        raise ConfigError(f"{done.override_port} is not a port", f"{path}.override_port")
    if isinstance(done, actions.Reject) and done.method == "drop" and done.no_drop:
        raise ConfigError('"no_drop" has no meaning with method "drop"', f"{path}.no_drop")
    if isinstance(done, Sniff):
        known = {*actions.STREAM_SNIFFERS, *actions.PACKET_SNIFFERS}
        for name in [done.sniffer] if isinstance(done.sniffer, str) else done.sniffer:
            if name not in known:
                raise ConfigError(f'unknown sniffer "{name}"; sniffers: {", ".join(sorted(known))}', f"{path}.sniffer")
            if name not in actions.BUILT_SNIFFERS:
                raise ConfigError(
                    f'sniffer "{name}" exists in sing-box {anchor.VERSION} but is not built yet; '
                    f"built: {', '.join(sorted(actions.BUILT_SNIFFERS))}", f"{path}.sniffer",
                )  # fmt: skip
    if set(raw) <= {"type", "action"} and isinstance(done, Route):
        raise ConfigError("missing conditions", path)


def parse_match(
    raw: dict[str, Any],
    path: str,
    keys: frozenset[str],
    objects: tuple[str, ...] = ("DefaultRule",),
    also: frozenset[str] = frozenset(),
    *,
    headless: bool = False,
) -> Rule:
    """The asking half of a rule: items named by ``keys``, rule sets, invert, logical children.

    ``objects`` are sing-box's option objects that such a rule has (for "not built yet"), ``also`` what the caller takes
    itself (for suggestions). DNS rules come through here with their own keys. Raises ConfigError.
    """
    if raw.get("type", "") not in ("", "default", "logical"):
        raise ConfigError(f'unknown rule type "{raw["type"]}"; write "default" or "logical"', f"{path}.type")
    invert = _take(truth, raw.get("invert", False), f"{path}.invert")
    if raw.get("type") == "logical":
        return _logical(raw, path, keys, objects, also, invert, headless)
    found: list[Item] = []
    known = keys | {"type", "invert"} | (frozenset() if headless else SET_KEYS | {"rule_set_ip_cidr_accept_empty"})
    for key in raw:
        if key in REMOVED:
            raise ConfigError(f'"{key}" was removed in sing-box 1.12.0; use a rule set', f"{path}.{key}")
        if headless and key in OURS:
            raise ConfigError(f'"{key}" is not for rule sets; write it in the rule that names the set', f"{path}.{key}")
        if key not in known:
            raise ConfigError(_unknown(key, known | also, objects), f"{path}.{key}")
    for key, kind in ITEMS.items():
        value = raw.get(key)
        # absent as Go sees it; 0 is a port and a user
        if key not in keys or value is None or value is False or value in ([], "") or (key, value) == ("ip_version", 0):
            continue
        found.append(_take(kind.parse, value, f"{path}.{key}"))
    return _default(found, raw, path, invert, headless)


def _default(found: list[Item], raw: dict[str, Any], path: str, invert: bool, headless: bool) -> Default:
    tags: tuple[str, ...] = ()
    match_source = accept_empty = False
    if not headless:
        if raw.get("rule_set"):
            tags = _take(texts, raw["rule_set"], f"{path}.rule_set")
        for key in ("rule_set_ip_cidr_match_source", "rule_set_ipcidr_match_source"):
            match_source |= _take(truth, raw.get(key, False), f"{path}.{key}")
        key = "rule_set_ip_cidr_accept_empty"
        accept_empty = _take(truth, raw.get(key, False), f"{path}.{key}")
    elif query := [item for item in found if item.key == "query_type"]:
        # read and not evaluated inside a rule set (1.12.12)
        found = [item for item in found if item not in query]
    return Default(found, tags, match_source=match_source, accept_empty=accept_empty, invert=invert)


def _logical(
    raw: dict[str, Any], path: str, keys: frozenset[str], objects: tuple[str, ...], also: frozenset[str], invert: bool,
    headless: bool,
) -> Logical:  # fmt: skip
    mode = raw.get("mode", "")
    if mode not in ("and", "or"):
        raise ConfigError(f'a logical rule needs "mode": "and" or "or", got {mode!r}', f"{path}.mode")
    known = {"type", "mode", "rules", "invert"}
    for key in raw:
        if key not in known:
            raise ConfigError(_unknown(key, known | also, ("LogicalRule", *objects[1:])), f"{path}.{key}")
    children = raw.get("rules")
    if not isinstance(children, list) or not children:
        raise ConfigError('a logical rule needs "rules"', path)
    rules = []
    for index, child in enumerate(children):
        place = f"{path}.rules[{index}]"
        if not isinstance(child, dict):
            raise ConfigError("a rule is an object", place)
        inner = dict(child)
        if not headless:
            # a child's action is read by sing-box and does nothing
            for key in ("action", *Route.__struct_fields__):
                inner.pop(key, None)
        if not set(inner) - {"type", "invert"}:
            raise ConfigError("missing conditions", place)
        rules.append(parse_match(inner, place, keys, ("DefaultRule",), headless=headless))
    return Logical(mode, rules, invert=invert)


def parse_headless(raw: Any, path: str) -> Rule:
    """One rule of a rule set in source form. Raises ConfigError."""
    if not isinstance(raw, dict):
        raise ConfigError("a rule is an object", path)
    if not set(raw) - {"type", "invert"}:
        raise ConfigError("missing conditions", path)
    return parse_match(raw, path, HEADLESS, ("DefaultHeadlessRule",), headless=True)


def _unknown(key: str, known: Iterable[str], objects: tuple[str, ...]) -> str:
    for name in objects:
        if name and key in anchor.fields(name):
            return anchor.unknown_field(key, set(known), name)
    every = {field for name in objects if name for field in anchor.fields(name)}
    return anchor.unknown_field(key, set(known) | every)


def _take(parse: Callable[[Any], Any], value: Any, path: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        raise ConfigError(str(error), path) from None
