"""What else takes packets out of their way: other people's tproxy and redirect, what is done before our chains, and
flows that a flowtable carries past all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.kernel.probe.finding import Finding
from gateway.kernel.probe.ruleset import PRIORITY, Place, Ruleset, named

BEFORE = {"queue": "queues", "notrack": "does not track", "drop": "drops"}
"""Statements that keep packets from us."""


def foreign_chains(ruleset: Ruleset) -> Iterator[Finding]:
    """Rules of others that divert traffic too; the worse where it is to ports of ours."""
    found = diverting(ruleset)
    parts = [
        f"{named(place, rule)} to {f'our port {port}' if port in ruleset.ports else f'port {port}'}"
        for place, rule, port in found
    ]
    remedy = "; ".join(f"nft delete rule {named(place, rule)}" for place, rule, _ in found)
    detail = ", ".join(parts)
    yield Finding("foreign-chains", not found, detail and f"{detail}: tproxy or redirect beside ours", remedy)


def diverting(ruleset: Ruleset) -> list[tuple[Place, dict[str, Any], Any]]:
    """Each foreign rule with a tproxy or redirect, and its port (None: that of the packet; text: one of several)."""
    return [(place, rule, port) for place, rule in ruleset.foreign() for port in _diverted(rule)]


def _diverted(rule: dict[str, Any]) -> Iterator[Any]:
    for statement in rule.get("expr", []):
        for key in ("tproxy", "redirect"):
            if isinstance(statement, dict) and key in statement:
                yield _port((statement[key] or {}).get("port"))


def _port(value: Any) -> int | str | None:
    match value:
        case None | int():
            return value
        case {"range": [first, last]}:
            return f"{first}-{last}"
    return "by a map"


def earlier_hooks(ruleset: Ruleset) -> Iterator[Finding]:
    """What others do to packets before we see them. To drop them is their right."""
    found = []
    for place, rule in ruleset.foreign():
        done = [
            word
            for key, word in BEFORE.items()
            if any(key in part for part in rule.get("expr", []) if isinstance(part, dict))
        ]
        early = [chain for chain in ruleset.hooks(place) if chain["hook"] == "prerouting" and chain["prio"] < PRIORITY]
        if done and early:
            found.append((done[0], f"{named(place, rule)} {done[0]}"))
    taken = [text for word, text in found if word != BEFORE["drop"]]
    detail = ", ".join(text for _, text in found)
    yield Finding("earlier-hooks", not taken, detail and f"{detail} before the gateway sees it", needed=False)


def flowtables(ruleset: Ruleset) -> Iterator[Finding]:
    """Only direct flows reach the hook where others add to one, so that it is no harm."""
    names = [f"{one['family']} {one['table']} {one['name']}" for one in ruleset.flowtables]
    detail = ", ".join(names)
    note = f"{detail} carries direct flows: gateway.kernel.offload may be off" if names else ""
    yield Finding("flowtables", True, note, needed=False)
