"""Everybody's nftables rules as one listing tells them, and what our base table says of the interfaces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gateway.kernel.probe.finding import answer, text

OWN = re.compile(r"inet gateway(_base|_tun_\d+)?")
"""Our own tables: family and name."""
TABLE = re.compile(r"table (\S+) (\S+) \{")
DIVERTS = re.compile(r" (?:tproxy|redirect) (?:\S+ )?to \S*:(\d+)")
Place = tuple[str, str, str]
"""Family, table, chain."""
PRIORITY = -151
"""Of our prerouting and output chains (nft/steer.nft)."""
IPTABLES = {"filter", "nat", "mangle", "raw", "security"}
DEEPEST = 16
"""Jumps that the kernel allows to follow each other (NFT_JUMP_STACK_SIZE)."""


def own(place: Sequence[str]) -> bool:
    """Whether a table, or what is in it, is ours; family and table come first in ``place``."""
    return OWN.fullmatch(" ".join(place[:2])) is not None


@dataclass(frozen=True, slots=True)
class Ruleset:
    """``chains``, ``rules`` are the objects of ``nft -j list table``, in its order; ``unread`` tables have none.
    ``lans``, ``wans``: interfaces of the gateway that runs, or ran, here; empty where there was none."""

    tables: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    chains: dict[Place, dict[str, Any]] = field(default_factory=dict)
    rules: dict[Place, list[dict[str, Any]]] = field(default_factory=dict)
    flowtables: list[dict[str, Any]] = field(default_factory=list)
    lans: tuple[str, ...] = ()
    wans: tuple[str, ...] = ()
    unread: list[tuple[str, str]] = field(default_factory=list)
    ports: set[int] = field(default_factory=set)
    """To which rules of ours divert."""

    def foreign(self) -> Iterator[tuple[Place, dict[str, Any]]]:
        """Rules of others."""
        for place, rules in self.rules.items():
            if not own(place):
                yield from ((place, rule) for rule in rules)

    def hooks(self, place: Place) -> Iterator[dict[str, Any]]:
        """The base chains from which a chain is reached, itself included."""
        for base, chain in self.chains.items():
            if "hook" in chain and base[:2] == place[:2] and place in self._reached(base):
                yield chain

    def _reached(self, base: Place) -> set[Place]:
        found, left = {base}, [base]
        while left:
            here = left.pop()
            for rule in self.rules.get(here, ()):
                for target in _targets(rule.get("expr", [])):
                    place = (*here[:2], target)
                    if place not in found:
                        found.add(place)
                        left.append(place)
        return found


def parse(objects: list[dict[str, Any]], lans: tuple[str, ...] = (), wans: tuple[str, ...] = ()) -> Ruleset:
    """Of the list ``nftables`` of ``nft -j list ruleset``."""
    found = Ruleset(lans=lans, wans=wans)
    for entry in objects:
        match entry:
            case {"table": dict(table)}:
                found.tables[table["family"], table["name"]] = table
            case {"chain": dict(chain)}:
                found.chains[chain["family"], chain["table"], chain["name"]] = chain
            case {"rule": dict(rule)}:
                found.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
            case {"flowtable": dict(flowtable)}:
                found.flowtables.append(flowtable)
    return found


def read() -> Ruleset:
    """What the kernel holds now, sets without their elements, our own tables that have an owner without their rules;
    empty without nft. Raises OSError, SubprocessError."""
    objects: list[dict[str, Any]] = []
    tables, unread = _tables(), []
    for table, said in tables.items():
        if not (said.flags and own(table)):
            try:
                objects += _objects("-t", "list", "table", *table)
            except ValueError:
                unread.append(table)
    lans: tuple[str, ...] = ()
    wans: tuple[str, ...] = ()
    if ("inet", "gateway_base") in tables:
        lans, wans = (
            tuple(str(name) for entry in _objects("list", "set", "inet", "gateway_base", word)
                  for name in entry.get("set", {}).get("elem", ()))
            for word in ("lans", "wans")
        )  # fmt: skip
    found = parse(objects, lans, wans)
    found.unread.extend(unread)
    for (family, name), said in tables.items():
        found.tables[family, name] = {"family": family, "name": name, "flags": said.flags}
        if own((family, name)):
            found.ports.update(said.ports)
    return found


def standing() -> list[str]:
    """Our own tables that are there, as nft names them. Raises OSError, SubprocessError."""
    return [" ".join(table) for table in _tables() if own(table)]


class _Said(NamedTuple):
    flags: list[str]
    ports: set[int]
    """To which its rules divert."""


def _tables() -> dict[tuple[str, str], _Said]:
    """By family and name. From text: of a table with one flag nft 1.0.6 prints as JSON what it has freed, and often
    breaks off there."""
    found: dict[tuple[str, str], _Said] = {}
    said = _Said([], set())
    for line in text("nft", "-t", "list", "ruleset").splitlines():
        if head := TABLE.match(line):
            said = found[head[1], head[2]] = _Said([], set())
        elif line.startswith("\tflags "):
            said.flags.extend(line.split(maxsplit=1)[1].split(","))
        elif diverts := DIVERTS.search(line):
            said.ports.add(int(diverts[1]))
    return found


def _objects(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (answer("nft", "-j", *words) or {}).get("nftables", [])
    return found


def _targets(value: Any) -> Iterator[str]:
    """Chains that an expression may lead to."""
    match value:
        case {"jump": {"target": str(name)}} | {"goto": {"target": str(name)}}:
            yield name
        case dict():
            for part in value.values():
                yield from _targets(part)
        case list():
            for part in value:
                yield from _targets(part)


def managed(place: Place) -> bool:
    """A base chain of iptables, which nft shows under that name."""
    return place[0] in ("ip", "ip6") and place[1] in IPTABLES and place[2].isupper()


def named(place: Place, rule: dict[str, Any] | None = None) -> str:
    """For a person, and for nft: ``inet fw4 input``, ``inet fw4 input handle 7``."""
    return " ".join(place) + ("" if rule is None else f" handle {rule['handle']}")
