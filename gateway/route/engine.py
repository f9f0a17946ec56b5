"""Walks the rules for one flow; what needs I/O it asks its caller for. Pure.

``Engine.start`` returns a ``Walk``. Each ``step()`` gives a ``Request`` (the caller sniffs or resolves, fills the
``Findings`` it passed in, and calls ``step`` again) or the final ``Decision``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow
from gateway.route.action import (
    SERVER_FIRST,
    Action,
    Bypass,
    HijackDNS,
    Overrides,
    Reject,
    Resolve,
    Route,
    RouteOptions,
    Sniff,
)
from gateway.route.item.source_hostname import SourceHostname
from gateway.route.item.table import DEVICE
from gateway.route.match import Rule, Sets, Subject, items, matches, point
from gateway.route.options import RouteRule


@dataclass(frozen=True, slots=True)
class SniffRequest:
    """Look at the first bytes for one of ``protocols``, for at most ``timeout`` seconds."""

    protocols: frozenset[str]
    timeout: float


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """Resolve ``domain`` into ``findings.addresses``; a failure ends the flow."""

    domain: str
    action: Resolve


Request = SniffRequest | ResolveRequest


@dataclass(frozen=True, slots=True)
class Decision:
    """``outbound`` is a tag where ``action`` is route. ``rule`` is the index in ``route.rules``, -1 for ``final``.
    ``destination`` is set where a rule overrode the flow's. ``method``: of a reject, default or drop."""

    action: Literal["route", "reject", "hijack-dns"]
    outbound: str = ""
    rule: int = -1
    method: Literal["default", "drop"] = "default"
    no_drop: bool = False
    destination: Address | None = None
    udp_timeout: float = 0.0
    udp_connect: bool = False
    udp_disable_domain_unmapping: bool = False


# Frozen, so those without anything of their flow are shared.
_decision = lru_cache(1024)(Decision)
_NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class Trace:
    """What a walk did: (rule index, whether it held, what it did), in order."""

    steps: list[tuple[int, bool, str]] = field(default_factory=list)


class Walk:
    """One flow's way through the rules."""

    __slots__ = ("_domain", "_engine", "_findings", "_flow", "_index", "_options", "_subject", "_trace", "_tried",
                 "destination")  # fmt: skip

    def __init__(self, engine: Engine, flow: Flow, findings: Findings, trace: Trace | None = None) -> None:
        self._engine, self._flow, self._findings, self._trace = engine, flow, findings, trace
        self._subject = Subject.of(flow, findings, engine.sets)
        self._index = 0
        self._tried = _NONE
        self.destination = flow.destination
        self._domain = flow.destination.domain or ""
        self._options: dict[str, float | bool] | None = None

    def step(self) -> Request | Decision:
        """On to the next thing that needs I/O, or to the end. Raises KeyError for a rule set that does not exist."""
        engine, subject, trace = self._engine, self._subject, self._trace
        rules = engine.rules
        if self._index:  # else it has just been made of them
            subject.learn(self._domain, self._findings)
        elif trace is None and (kept := engine.kept(self._flow, subject, self._findings.learned)) is not None:
            return self._decide("route", kept, outbound=engine.direct)
        while True:
            index = self._index if subject.name or trace is not None else engine.nameless[self._index]
            if index >= len(rules):
                break
            match, action, _ = rules[index]
            self._index = index + 1
            held = matches(match, subject)
            if trace is not None:
                trace.steps.append((index, held, type(action).__name__))
            if held and (done := self._act(index, action)) is not None:
                return done
        return self._decide("route", -1, outbound=engine.final)

    def _act(self, index: int, action: Action) -> Request | Decision | None:
        if isinstance(action, Bypass) and not action.outbound:
            return None  # the kernel did not see that it holds
        if isinstance(action, Overrides):
            self._override(action)
        match action:
            case Route() | Bypass():
                return self._decide("route", index, outbound=action.outbound)
            case Reject():
                return self._decide("reject", index, method=action.method or "default", no_drop=action.no_drop)
            case HijackDNS():
                return self._decide("hijack-dns", index)
            case Sniff():
                return self._sniff(action)
            case Resolve() if self.destination.domain:
                return ResolveRequest(self.destination.domain, action)
        return None

    def _sniff(self, action: Sniff) -> SniffRequest | None:
        if self.destination.port in SERVER_FIRST or self._findings.protocol:
            return None
        wanted = action.protocols(self._flow.network) - self._tried
        if not wanted:
            return None
        self._tried |= wanted
        return SniffRequest(wanted, float(action.timeout))

    def _override(self, action: Overrides) -> None:
        if action.override_address or action.override_port:
            host = action.override_address or self.destination.host
            self.destination = Address.of(host, action.override_port or self.destination.port)
            ip = self.destination.ip
            self._subject.destination = point(ip) if ip is not None else None
            self._subject.port = self.destination.port
            if action.override_address:
                self._domain = self.destination.domain or ""
                self._findings.addresses = ()
                self._subject.learn(self._domain, self._findings)
        options = {} if self._options is None else self._options
        if isinstance(action, RouteOptions) and action.udp_timeout:
            options["udp_timeout"] = float(action.udp_timeout)
        if action.udp_connect:
            options["udp_connect"] = True
        if action.udp_disable_domain_unmapping:
            options["udp_disable_domain_unmapping"] = True
        self._options = options or None

    def _decide(
        self, action: Literal["route", "reject", "hijack-dns"], rule: int, *, outbound: str = "",
        method: Literal["default", "drop"] = "default", no_drop: bool = False,
    ) -> Decision:  # fmt: skip
        options, destination = self._options, self.destination
        if options is None and destination is self._flow.destination:
            return _decision(action, outbound, rule, method, no_drop)
        options = options or {}
        return Decision(
            action, outbound, rule, method, no_drop, destination,
            udp_timeout=float(options.get("udp_timeout", 0.0)),
            udp_connect=bool(options.get("udp_connect", False)),
            udp_disable_domain_unmapping=bool(options.get("udp_disable_domain_unmapping", False)),
        )  # fmt: skip


class Engine:
    """The ordered rules of one configuration. ``final`` is an outbound's tag (the caller resolved the default);
    ``sets`` maps the tags of rule sets to their rules."""

    __slots__ = (
        "by_device",
        "bypasses",
        "captured",
        "direct",
        "final",
        "hostnames",
        "keeps",
        "nameless",
        "rules",
        "sets",
    )

    def __init__(
        self, rules: Sequence[RouteRule], final: str, sets: Mapping[str, Sequence[Rule]] | None = None
    ) -> None:
        self.rules = tuple(rules)
        # From each place on the next rule that a flow without a name may meet: most flows pass many that need one.
        nameless = [len(self.rules)]
        for index in reversed(range(len(self.rules))):
            nameless.append(nameless[-1] if self.rules[index].match.named else index)
        self.nameless = tuple(reversed(nameless))
        self.final = final
        self.sets: Sets = sets or {}
        asked = [item for rule in self.rules for item in items(rule.match)]
        self.by_device = any(item.key in DEVICE for item in asked)
        """Whether a rule asks for the flow's device (those of rule sets cannot)."""
        self.hostnames = frozenset().union(*(item.set for item in asked if isinstance(item, SourceHostname)))
        """Names of devices that rules ask for."""
        self.bypasses = any(isinstance(rule.action, Bypass) for rule in self.rules)
        self.captured = self.direct = ""
        """Tags of the inbound that captured flows enter, and of an outbound that does as the kernel does; "" = none."""
        self.keeps: Callable[[Flow, tuple[str, ...]], bool] | None = None
        """Whether the kernel would keep a flow of this host whose address has these names; None = it keeps none."""

    def stays(self, subject: Subject) -> int | None:
        """The first bypass rule that ``subject`` shows to hold; None where a rule before it ends the flow's way."""
        for index, (match, action, _) in enumerate(self.rules):
            if isinstance(action, Bypass | Route | Reject | HijackDNS) and matches(match, subject):
                return index if isinstance(action, Bypass) else None
        return None

    def kept(self, flow: Flow, subject: Subject, learned: tuple[str, ...]) -> int | None:
        """The same of a captured flow whose process the kernel did not know, with the names of its address: what it
        would have kept goes as it would have gone."""
        ours = flow.process is not None and flow.inbound == self.captured
        if not (self.bypasses and self.direct and ours and self.keeps is not None and self.keeps(flow, learned)):
            return None
        return self.stays(subject)

    def start(self, flow: Flow, findings: Findings, trace: Trace | None = None) -> Walk:
        return Walk(self, flow, findings, trace)

    def decide(self, flow: Flow, findings: Findings) -> Decision:
        """As if every sniff and resolve had already filled ``findings``: what is in there now is all there is."""
        walk = self.start(flow, findings)
        while True:
            done = walk.step()
            if isinstance(done, Decision):
                return done
