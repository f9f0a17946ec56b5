"""Why a flow goes where it goes: which rule decides, in the kernel or in userspace. Pure.

Asks the same compiled tables and the same engine as the running gateway, so that an explanation cannot disagree with
what happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from gateway.core.address import IP, Address
from gateway.core.flow import Device, Findings, Flow, Network, Process
from gateway.kernel.plan import LAST_UID, Steering, Verdict
from gateway.route.compile import Compiled
from gateway.route.engine import Decision, Engine, SniffRequest, Trace
from gateway.route.match import Default, Logical, Rule, Subject, matches

UNKNOWN_SOCKET = 30


@dataclass(frozen=True, slots=True)
class Query:
    """``source`` None: a flow of this host, of ``process``. ``address`` None: only the name is known, so only userspace
    can be asked. ``names``: learned names of the address, the client's last first; ``shown``: the name that the flow
    would show when sniffed ("" = none)."""

    network: Network
    port: int
    address: IP | None = None
    source: Address | None = None
    process: Process | None = None
    device: Device | None = None
    """That ``source`` is."""
    names: tuple[str, ...] = ()
    shown: str = ""
    protocol: str = ""
    """What sniffing would find; "" = guessed from network and ``shown``."""
    inbound: str = "gateway"


Judge = Callable[[Query, int, Verdict], tuple[Verdict, str]]
"""Query, profile and the kernel's verdict without names to the one with what it holds of names, and a line that says
why, "" for none."""


def explain(
    engine: Engine, compiled: Compiled, query: Query, final_reason: str = "", steering: Steering | None = None,
    judge: Judge | None = None,
) -> dict[str, Any]:  # fmt: skip
    """``verdict`` direct | reject | drop | user | sniff, ``where`` kernel | userspace, ``rule`` (-1 = final),
    ``action``, ``outbound``, ``profile``, ``steps`` (every rule that was asked), ``text`` (lines for a person);
    ``overruled``: rule, action and outbound of a rule that says otherwise, above a ``bypass`` or of those that the mode
    does not wait for, else None; ``skipped``: all of those that might (see ``skipped``).

    ``steering``: what is in force in the kernel, if that is not the whole of ``compiled``; ``judge``: what it holds of
    names, if that is more than ``query.names``."""
    trace, plain, why = Trace(), query, ""
    decision, sniffed = _walk(engine, query, trace)
    found: dict[str, Any] = {
        "rule": decision.rule, "action": decision.action, "outbound": decision.outbound, "sniffed": sniffed,
        "steps": _steps(engine, query, trace),
    }  # fmt: skip
    found["verdict"], found["where"], found["profile"] = "user", "userspace", None
    if query.address is not None:
        profile, verdict = _kernel(compiled, query, steering)
        if judge is not None:
            plain = replace(query, names=())
            verdict, why = judge(query, profile, _kernel(compiled, plain, steering)[1])
        found["profile"], found["verdict"] = profile, verdict.name.lower()
        found["where"] = "kernel" if verdict in (Verdict.DIRECT, Verdict.REJECT, Verdict.DROP) else "userspace"
    found["overruled"], found["skipped"] = None, []
    flow = _flow(query)
    named = query.names and found["profile"] is not None and compiled.steering.profiles[found["profile"]].learned
    if found["where"] == "kernel" and not named and not why:
        found["skipped"] = skipped(engine, compiled, compiled.skips(flow))
    if found["skipped"]:
        trace, unseen, seen = Trace(), replace(query, shown="", protocol=""), decision
        decision, found["sniffed"] = _walk(engine, unseen, trace)[0], False
        if decision != seen:
            found["overruled"] = {"rule": seen.rule, "action": seen.action, "outbound": seen.outbound}
        found["rule"], found["action"], found["outbound"] = decision.rule, decision.action, decision.outbound
        found["steps"] = _steps(engine, unseen, trace)
    subject = Subject.of(flow, Findings(learned=query.names), engine.sets)
    stays = engine.stays(subject) if found["verdict"] == "direct" else engine.kept(flow, subject, query.names)
    if stays is not None:
        if 0 <= decision.rule < stays:
            found["overruled"] = {key: found[key] for key in ("rule", "action", "outbound")}
        outbound = "" if found["verdict"] == "direct" else engine.direct
        found["rule"], found["action"], found["outbound"] = stays, "bypass", outbound
    found["text"] = _text(found, query, final_reason)
    if found["skipped"]:
        found["text"][-1] = f"in the kernel: mode {compiled.mode} does not wait for what the flow would show"
        if above := found["overruled"]:
            found["text"].append(f"which would be for rule {above['rule']}: {above['outbound'] or above['action']}")
        found["text"] += [f"  skipped: {line(one)}" for one in found["skipped"]]
    elif why:
        found["text"][-1] = why
    elif query.address is not None and verdict is Verdict.SNIFF and _kernel(compiled, plain)[1] is not verdict:
        found["text"][-1] = "in userspace: the kernel does not know this host's programs (gateway status says why)"
    return found


def skipped(engine: Engine, compiled: Compiled, rules: Iterable[int] | None = None) -> list[dict[str, Any]]:
    """``rule``, ``match`` and ``action`` (as in the steps of ``explain``) and ``outbound`` ("" = none) of ``rules``, or
    of all that the compiler skips."""
    out = []
    for index in compiled.skipped if rules is None else rules:
        rule = engine.rules[index]
        outbound = getattr(rule.action, "outbound", "")
        out.append({
            "rule": index, "match": str(rule.match), "action": type(rule.action).__name__, "outbound": outbound,
        })  # fmt: skip
    return out


def line(rule: dict[str, Any]) -> str:
    """One of ``skipped``, for a person."""
    target = f" -> {rule['outbound']}" if rule["outbound"] else ""
    return f"rule {rule['rule']} ({rule['action']}): {rule['match']}{target}"


def _kernel(compiled: Compiled, query: Query, steering: Steering | None = None) -> tuple[int, Verdict]:
    assert query.address is not None
    family: Any = query.address.version
    where = (query.network, query.port, family, int(query.address))
    if query.source is not None and query.source.ip is not None and query.process is None:
        device = ("", "") if query.device is None else (query.device.interface, query.device.mac)
        return compiled.lookup(*where, source=int(query.source.ip), device=device, names=query.names)
    socket = socket_class(compiled, query.process)
    # A process of no known user is none that a rule names.
    user = query.process.uid & LAST_UID if query.process is not None else LAST_UID
    return compiled.lookup(*where, socket=socket, user=user, names=query.names, steering=steering)


def socket_class(compiled: Compiled, process: Process | None) -> int:
    """The class that BPF gives a socket of ``process``, whose executable and cgroup it has met before; without one,
    that of a socket that no rule names."""
    plan = compiled.processes
    mask = 0
    if process is not None:
        mask |= dict(plan.paths).get(process.path, 0) | dict(plan.names).get(process.name, 0)
        mask |= dict(plan.uids).get(process.uid, 0)
        for gid in process.gids:
            mask |= dict(plan.gids).get(gid, 0)
        mask |= plan.judged(process.path) | plan.placed(process.cgroup)
    return dict(plan.classes).get(mask, UNKNOWN_SOCKET)


def _flow(query: Query) -> Flow:
    source = query.source or Address.of(
        "127.0.0.1" if query.address is None or query.address.version == 4 else "::1", 0
    )
    destination = Address(query.address if query.address is not None else query.shown, query.port)
    return Flow(query.network, query.inbound, "tproxy", source, destination, "", query.process, device=query.device)


def _walk(engine: Engine, query: Query, trace: Trace) -> tuple[Decision, bool]:
    findings = Findings(learned=query.names)
    walk = engine.start(_flow(query), findings, trace)
    guess = query.protocol or (("quic" if query.network == "udp" else "tls") if query.shown else "")
    sniffed = False
    while True:
        done = walk.step()
        if isinstance(done, Decision):
            return done, sniffed
        if isinstance(done, SniffRequest):
            sniffed = True
            if guess in done.protocols:
                findings.protocol, findings.domain = guess, query.shown


def _steps(engine: Engine, query: Query, trace: Trace) -> list[dict[str, Any]]:
    findings = Findings(learned=query.names)
    subject = Subject.of(_flow(query), findings, engine.sets)
    if any(action == "Sniff" and held for _, held, action in trace.steps):
        subject.name = query.shown or subject.name
    steps = []
    for index, held, action in trace.steps:
        rule = engine.rules[index].match
        step: dict[str, Any] = {"rule": index, "match": str(rule), "held": held, "action": action}
        if not held:
            step["why_not"] = why_not(rule, subject)
        steps.append(step)
    return steps


def why_not(rule: Rule, subject: Subject) -> str:
    """The first part of a rule that did not hold, as text."""
    if isinstance(rule, Logical):
        for child in rule.rules:
            if not matches(child, subject):
                return why_not(child, subject)
        return f"inverted: {rule}"
    assert isinstance(rule, Default)
    if rule.invert:
        return f"inverted: {rule}"
    for item in rule.plain:
        if not item.match(subject):
            return str(item)
    for _, members in rule.groups:
        if not any(item.match(subject) for item in members):
            return " or ".join(str(item) for item in members)
    return "rule_set=" + ",".join(rule.rule_set) if rule.rule_set else str(rule)


def _text(found: dict[str, Any], query: Query, final_reason: str) -> list[str]:
    what = query.shown or (query.names[0] if query.names else "")
    to = f"{what} ({query.address})" if what and query.address else str(query.address or what)
    lines = [f"{query.network} to {to} port {query.port}"]
    for step in found["steps"]:
        state = "holds" if step["held"] else f"no: {step['why_not']}"
        lines.append(f"  rule {step['rule']} ({step['action']}): {step['match']}: {state}")
    by = f"rule {found['rule']}" if found["rule"] >= 0 else f"final{f' ({final_reason})' if final_reason else ''}"
    target = found["outbound"] or found["action"]
    lines.append(f"{by} decides: {target}")
    reasons = {
        "direct": "in the kernel: nothing that the packet hides could change it",
        "reject": "in the kernel: refused without userspace",
        "drop": "in the kernel: dropped without userspace",
        "user": "in userspace: one outbound is certain",
        "sniff": "in userspace: what the packet does not show could change it",
    }
    if found["action"] == "bypass":
        if above := found["overruled"]:
            lines.append(f"rule {above['rule']} above would say {above['outbound'] or above['action']}, but the packet "
                         "alone does not show that it holds")  # fmt: skip
        if found["where"] == "kernel":
            lines.append(f"in the kernel: rule {found['rule']} wants it to stay there")
            return lines
    lines.append(reasons[found["verdict"]])
    return lines
