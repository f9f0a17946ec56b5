"""The judge of the compiler: the real engine, run over every completion of what a packet hides. It knows nothing of how
the compiler works.

Of completions that no item of the rules tells apart one stands for all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from ipaddress import ip_address
from typing import Any, NamedTuple, TypeVar

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow, Process
from gateway.kernel.plan import Verdict
from gateway.route.action import Bypass, HijackDNS, Overrides, Reject, Route, RouteOptions, Sniff
from gateway.route.engine import Decision, Engine, SniffRequest, Trace
from gateway.route.item.names import NameItem
from gateway.route.match import Logical, Rule, Subject, items, point
from tests.unit.route.brute import (
    CGROUPS,
    CLIENTS,
    KINDS,
    LOCAL,
    NAMED,
    NAMES,
    PROCESSES,
    PROTOCOLS,
    SOURCE_PORTS,
    Case,
    Key,
    socket_mask,
    unknown,
)

T = TypeVar("T")
USERSPACE = "elsewhere"
"""Outcome of a flow whose destination a rule has replaced: never the kernel's."""


class Shown(NamedTuple):
    """What a flow shows when it is looked at."""

    protocol: str = ""
    name: str = ""
    client: str = ""


class Ruling(NamedTuple):
    """``also``: what modes ``balanced`` and ``fast`` may say instead."""

    verdict: Verdict
    outcomes: frozenset[str]
    also: Verdict


def alike(candidates: Iterable[T], ask: Callable[[T], Hashable]) -> list[T]:
    """One candidate for each answer."""
    return list({ask(one): one for one in candidates}.values())


class Judge:
    def __init__(self, case: Case) -> None:
        self.case = case
        rules = [rule.match for rule in case.route.rules]
        rules += [rule for inner in case.sets.values() for rule in inner]
        self.items = [item for rule in rules for item in items(rule)]
        through = tuple(
            rule if isinstance(rule.action, Sniff) else rule._replace(action=RouteOptions())
            for rule in case.route.rules
        )
        self.through = Engine(through, case.engine.final, case.sets)
        """Sniffs alone: it goes on where the engine would end."""
        self.bypasses = any(isinstance(rule.action, Bypass) for rule in case.route.rules)
        self.walks = 0
        self._sources: dict[int, list[Any]] = {}

    @cached_property
    def names(self) -> list[str]:
        asked = [item for item in self.items if isinstance(item, NameItem)]
        return alike(NAMES, lambda name: tuple(item.holds(name) for item in asked))

    @cached_property
    def clients(self) -> list[str]:
        asked: list[Any] = [item for item in self.items if item.key == "client"]
        return alike(CLIENTS, lambda client: tuple(client in item.set for item in asked))

    @cached_property
    def source_ports(self) -> list[int]:
        def ask(port: int) -> Hashable:
            subject = Subject()
            subject.source_port = port
            return tuple(item.match(subject) for item in asked)

        asked = [item for item in self.items if item.group == "source_port"]
        return alike(SOURCE_PORTS, ask)

    def local_sources(self, version: int) -> list[Any]:
        def ask(source: Any) -> Hashable:
            subject = Subject()
            subject.source, subject.match_source = point(source), True
            return tuple(item.match(subject) for item in asked)

        if version not in self._sources:
            asked = [item for item in self.items if item.group == "source" or item.key == "ip_cidr"]
            self._sources[version] = alike((one for one in map(ip_address, LOCAL) if one.version == version), ask)
        return self._sources[version]

    @cached_property
    def processes(self) -> list[Process]:
        """One for each answer of the items together with what BPF sees of it."""

        def ask(process: Process) -> Hashable:
            subject = Subject()
            subject.process = process
            return (socket_mask(self.case.compiled, process), *(item.match(subject) for item in asked))

        asked = [item for item in self.items if item.key.startswith(("process", "user", "group", "cgroup"))]
        places = CGROUPS if any(item.key == "cgroup" for item in asked) else CGROUPS[:1]
        everybody = (process._replace(cgroup=place) for process in PROCESSES for place in places)
        return alike(everybody, ask) if asked else [PROCESSES[0]]

    def members(self, key: Key) -> list[Process]:
        """Who may have the socket of a local flow."""
        if key.process is None or unknown(self.case.compiled, key):
            return self.processes
        mask = socket_mask(self.case.compiled, key.process)
        return [key.process, *(one for one in self.processes if socket_mask(self.case.compiled, one) == mask)]

    def flows(self, key: Key) -> Iterator[Flow]:
        """Every flow that looks like this to the kernel."""
        no_process: list[Process | None] = [None]
        if key.source is not None:
            sources, processes = [key.source], no_process
        else:
            sources, processes = self.local_sources(key.address.version), [*self.members(key)]
        target = Address(key.address, key.port)
        for source in sources:
            for port in self.source_ports:
                for process in processes:
                    yield Flow(
                        key.network, "gateway", "tproxy", Address(source, port), target, "", process, device=key.device
                    )

    def shown(self, key: Key, names: Iterable[str]) -> Iterator[Shown]:
        """What such a flow may show, if it shows one of ``names``."""
        yield Shown()
        for protocol in PROTOCOLS[key.network]:
            if protocol == "dns" and key.port != 53 and self.case.mode != "paranoid":
                continue  # the one assumption of the modes, beside learned names
            for name in names if protocol in NAMED else ("",):
                for client in self.clients if protocol == "quic" else ("",):
                    yield Shown(protocol, name, client)

    def completions(self, key: Key) -> Iterator[tuple[Flow, tuple[str, ...], list[Shown]]]:
        """Flow, what is learned of its destination, and what it may show: of a learned name it is believed that the
        flow shows it too."""
        any_name = ["", *self.names]
        shown: list[tuple[tuple[str, ...], list[Shown]]]
        if self.case.mode == "paranoid":
            every = list(self.shown(key, any_name))
            shown = [((), every), *(((name,), every) for name in self.names)]
        elif key.names:
            shown = [((name,), list(self.shown(key, [name]))) for name in key.names]
        else:
            shown = [((), list(self.shown(key, any_name)))]
        for flow in self.flows(key):
            for learned, what in shown:
                yield flow, learned, what

    def outcomes(self, key: Key) -> set[str]:
        """What the engine decides, over all completions; two where there are two."""
        out: set[str] = set()
        for flow, learned, shown in self.completions(key):
            for one in shown:
                self.walks += 1
                done = decide(self.case.engine, flow, one, learned)
                out.add(done.outcome)
                if len(out) > 1 or not done.looked:
                    break  # without a look it does not matter what the flow would have shown
            if len(out) > 1:
                break
        return out

    def ruling(self, key: Key) -> Ruling:
        """What the kernel should say. Where rules say ``bypass`` each owner of the address is judged by itself: whether
        it stays, else where its flows end."""
        if not self.bypasses:
            outcomes = self.outcomes(key)
        else:
            outcomes = set()
            alone = [replace(key, names=(name,)) for name in key.names]
            for one in alone or [key]:
                outcomes |= {"direct"} if self.stays(one) else self.outcomes(one)
        verdict = also = verdict_of(outcomes)
        if verdict is Verdict.SNIFF and self.case.mode in ("balanced", "fast"):
            also = self.by_address(key)
        return Ruling(verdict, frozenset(outcomes), also)

    def by_address(self, key: Key) -> Verdict:
        """As if no sniff found anything and no rule asked for names, where the rules that then decide ask for the
        address."""
        done = [decide(self.case.engine, flow, Shown(), ()) for flow in self.flows(key)]
        verdict = verdict_of({one.outcome for one in done})
        if any(one.rule < 0 or not self.asks_address[one.rule] for one in done):
            return Verdict.SNIFF
        return verdict if self.case.mode == "fast" or verdict is Verdict.DIRECT else Verdict.SNIFF

    @cached_property
    def asks_address(self) -> list[bool]:
        """Of each rule, whether an item for the destination's address has a part in it."""

        def asks(rule: Rule, match_source: bool) -> bool:
            if isinstance(rule, Logical):
                return any(asks(child, False) for child in rule.rules)
            if any(item.key == "ip_is_private" or (item.key == "ip_cidr" and not match_source) for item in rule.items):
                return True
            return any(asks(inner, rule.match_source) for tag in rule.rule_set for inner in self.case.sets[tag])

        return [asks(rule.match, False) for rule in self.case.route.rules]

    def held(self, key: Key) -> list[tuple[bool, ...]]:
        """For each completion, of every rule whether it holds when a flow comes to it."""
        out = []
        for flow, learned, shown in self.completions(key):
            for one in shown:
                trace = Trace()
                self.walks += 1
                looked = decide(self.through, flow, one, learned, trace).looked
                out.append(tuple(held for _, held, _ in trace.steps))
                if not looked:
                    break
        return list(dict.fromkeys(out))

    def stays(self, key: Key) -> bool:
        """Whether a bypass certainly holds, and something may come to it."""
        rows = self.held(key)
        rules = self.case.route.rules
        for index, rule in enumerate(rules):
            if isinstance(rule.action, Bypass) and all(row[index] for row in rows):
                above = [at for at, one in enumerate(rules[:index]) if ends(one.action)]
                return not all(any(row[at] for at in above) for row in rows)
        return False


def verdict_of(outcomes: set[str]) -> Verdict:
    if len(outcomes) > 1 or outcomes == {USERSPACE}:
        return Verdict.SNIFF
    kernel = {"direct": Verdict.DIRECT, "reject": Verdict.REJECT, "drop": Verdict.DROP}
    return kernel.get(next(iter(outcomes)), Verdict.USER)


def ends(action: Any) -> bool:
    if isinstance(action, Bypass):
        return bool(action.outbound)
    if isinstance(action, Overrides) and (action.override_address or action.override_port):
        return True
    return isinstance(action, Route | Reject | HijackDNS)


class Done(NamedTuple):
    """What becomes of a flow, by which rule (-1: ``final``), and whether it was looked at."""

    decision: Decision
    replaced: bool
    looked: bool

    @property
    def outcome(self) -> str:
        return USERSPACE if self.replaced else outcome(self.decision)

    @property
    def rule(self) -> int:
        return self.decision.rule


def decide(engine: Engine, flow: Flow, shown: Shown, learned: tuple[str, ...] = (), trace: Trace | None = None) -> Done:
    findings = Findings(learned=learned)
    walk = engine.start(flow, findings, trace)
    looked = False
    while True:
        done = walk.step()
        if isinstance(done, Decision):
            return Done(done, walk.destination != flow.destination, looked)
        looked = True
        if isinstance(done, SniffRequest) and shown.protocol in done.protocols:
            findings.protocol, findings.domain, findings.client = shown


def outcome(done: Decision) -> str:
    if done.action == "route":
        kind = KINDS[done.outbound]
        return "direct" if kind == "direct" else "reject" if kind == "block" else f"outbound {done.outbound}"
    return ("drop" if done.method == "drop" else "reject") if done.action == "reject" else done.action
