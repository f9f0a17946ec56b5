"""Chains of others that drop what they do not know (firewalld, fw4, Docker, a server's own firewall): what of ours they
drop, found by walking them with a packet of each kind, and the line that lets it pass.

Each chain of a hook has its say; that ours accepts is no help. A rule that asks for what such a packet leaves open
(an address, a set, a rate) is passed over: a chain that accepts the same in other words is listed all the same.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.kernel import mark
from gateway.kernel.nft.render import quote
from gateway.kernel.probe.finding import TIMEOUT, Finding, tool
from gateway.kernel.probe.ruleset import DEEPEST, PRIORITY, Place, Ruleset, managed, named, own

Verdict = Literal["accept", "drop", "return"]
VERSIONS = {"inet": ("ipv4", "ipv6"), "ip": ("ipv4",), "ip6": ("ipv6",)}
IGNORED = {"counter", "log", "mangle"}
"""Statements that let a packet go on."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Packets that must pass ``hook``: ``text`` is the condition of the rule that lets them, ``options`` are those of
    iptables, one a rule. ``facts``: by what nft calls it, the values that such a packet may have; ``marks``: bits that
    are set so."""

    hook: str
    text: str
    options: tuple[str, ...]
    facts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    marks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    versions: tuple[str, ...] = ("ipv4", "ipv6")

    def packets(self, version: str) -> Iterator[Packet]:
        """One of each kind."""
        for values in itertools.product(*self.facts.values()):
            yield Packet({**dict(zip(self.facts, values, strict=True)), "meta nfproto": version}, dict(self.marks))


@dataclass(frozen=True, slots=True)
class Packet:
    facts: dict[str, str]
    marks: dict[str, tuple[int, int]]


def passages(ruleset: Ruleset) -> Iterator[Passage]:
    """What the gateway lets pass, and others must too."""
    lans, wans = ruleset.lans, ruleset.wans
    new = {"ct state": ("new",)}
    inward = {"meta iifname": lans} if lans else {}
    yield _marked("prerouting", "meta mark", mark.ROUTE, mark.ROUTE, {**inward, "fib": ("missing",)})
    yield _marked("input", "meta mark", mark.ROUTE, mark.ROUTE, {**inward, **new})
    yield _marked("input", "ct mark", mark.CLASS, mark.NAMES, {**inward, **new, "ct status": ("dnat",)})
    yield _marked("output", "meta mark", mark.SOCKET, mark.OWN, new)
    if not lans:
        yield _marked("forward", "ct mark", mark.CLASS, mark.DIRECT, new)
        return
    # By interface: what is direct, from LAN to LAN, and what leaves when the gateway is dead (fail: open).
    yield Passage("forward", f"iifname {_set(lans)} oifname {_set((*lans, *wans))}", _pairs(lans, (*lans, *wans)),
                  {"meta iifname": lans, "meta oifname": (*lans, *wans), **new})  # fmt: skip
    if not wans:
        return
    back = {"meta iifname": wans, "meta oifname": lans}
    known = tuple(f"{pair} -m conntrack --ctstate ESTABLISHED,RELATED" for pair in _pairs(wans, lans))
    yield Passage("forward", f"iifname {_set(wans)} oifname {_set(lans)} ct state established,related", known,
                  {**back, "ct state": ("established", "related")})  # fmt: skip
    if ruleset.rules.get(("inet", "gateway_base", "forwards")):
        yield Passage("forward", "ct status dnat", ("-m conntrack --ctstate DNAT",),
                      {**back, **new, "ct status": ("dnat",)}, versions=("ipv4",))  # fmt: skip
    for rule in ruleset.rules.get(("inet", "gateway_base", "pinholes"), ()):
        asked = dict(filter(None, map(_asked, rule["expr"])))
        text = " ".join(f"{key} {value}" for key, value in asked.items())
        port = next((f"-p {key.split()[0]} --dport {value}" for key, value in asked.items() if "dport" in key), "")
        facts = {**back, **new, **{key: (value,) for key, value in asked.items()}}
        yield Passage("forward", text, (f"-d {asked.get('ip6 daddr')} {port}",), facts, versions=("ipv6",))


def _marked(hook: str, key: str, mask: int, value: int, facts: Mapping[str, tuple[str, ...]]) -> Passage:
    module = "mark" if key == "meta mark" else "connmark"
    options = f"-m {module} --mark {value:#x}/{mask:#x}"
    return Passage(hook, f"{key} & {mask:#010x} == {value:#010x}", (options,), facts, {key: (mask, value)})


def _pairs(ways_in: tuple[str, ...], ways_out: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"-i {one} -o {other}" for one in map(shlex.quote, ways_in) for other in map(shlex.quote, ways_out))


def foreign_policies(ruleset: Ruleset) -> Iterator[Finding]:
    """One finding for all chains, with the lines for each passage."""
    found = [(place, lines) for place, where, passage in dropping(ruleset) if (lines := _lines(place, where, passage))]
    detail = ", ".join(dict.fromkeys(named(place) for place, _ in found))
    closed = [place for place, _ in found if "owner" in ruleset.tables.get(place[:2], {}).get("flags", ())]
    if closed:
        detail += f" ({closed[0][1]} owns its table, no line can be added: docs/neighbours.md)"
    remedy = "; ".join(line for place, lines in found if place not in closed for line in lines)
    yield Finding("foreign-policies", not found, detail and f"{detail}: may drop what the gateway lets pass", remedy)


def _lines(place: Place, where: Place, passage: Passage) -> list[str]:
    """Commands for a shell. iptables gives a chain up in which it finds a rule of nft's own making ("incompatible, use
    'nft' tool"), and Docker, libvirt with it: it is told in its own words, and asked for what it has already, since nft
    lists some of its rules without their meaning."""
    program = "iptables" if where[0] == "ip" else "ip6tables"
    path = tool(program)
    if not managed(place) or path is None:
        return [f"nft insert rule {named(where)} {shlex.quote(f'{passage.text} accept')}"]
    table = "" if where[1] == "filter" else f"-t {where[1]} "
    rules = [f"{where[2]} {options} -j ACCEPT" for options in passage.options]
    return [f"{program} {table}-I {rule}" for rule in rules if not _has(path, f"{table}-C {rule}")]


def _has(program: str, words: str) -> bool:
    done = subprocess.run([program, *shlex.split(words)], capture_output=True, timeout=TIMEOUT, check=False)
    return done.returncode == 0


def dropping(ruleset: Ruleset) -> list[tuple[Place, Place, Passage]]:
    """Chain, chain that is made for such lines, what is dropped."""
    found = []
    wanted = list(passages(ruleset))
    for place, chain in ruleset.chains.items():
        if own(place) or place[0] not in VERSIONS or "hook" not in chain or chain.get("type") == "nat":
            continue
        if chain["hook"] == "prerouting" and chain.get("prio", 0) <= PRIORITY:
            continue
        for passage in wanted:
            versions = set(VERSIONS[place[0]]) & set(passage.versions)
            packets = [packet for version in sorted(versions) for packet in passage.packets(version)]
            if passage.hook == chain["hook"] and any(_walk(ruleset, place, packet) == "drop" for packet in packets):
                found.append((place, _entrance(ruleset, place), passage))
    return found


def _entrance(ruleset: Ruleset, place: Place) -> Place:
    """Docker keeps a chain for its users' rules, and lets it be when it makes its own anew."""
    users = (*place[:2], "DOCKER-USER")
    return users if users in ruleset.chains and place[2] == "FORWARD" else place


def _walk(ruleset: Ruleset, place: Place, packet: Packet, depth: int = 0) -> Verdict:
    for rule in ruleset.rules.get(place, ()):
        verdict = _judge(ruleset, place, rule.get("expr", []), packet, depth)
        if verdict is not None:
            return verdict
    if depth:
        return "return"
    return "drop" if ruleset.chains[place].get("policy") == "drop" else "accept"


def _judge(ruleset: Ruleset, place: Place, expr: list[Any], packet: Packet, depth: int) -> Verdict | None:
    """None: the packet goes on to the next rule, or it cannot be told."""
    for statement in expr:
        match statement:
            case {"match": dict(asked)}:
                if not _holds(asked, packet):
                    return None
            case {"vmap": {"key": key, "data": {"set": list(rows)}}}:
                value = packet.facts.get(_name(key))
                taken = next((verdict for row, verdict in rows if value in _values(row)), None)
                return None if taken is None else _judge(ruleset, place, [taken], packet, depth)
            case {"accept": _}:
                return "accept"
            case {"drop": _} | {"reject": _}:
                return "drop"
            case {"return": _}:
                return "return"
            case {"jump": {"target": target}} | {"goto": {"target": target}} if depth < DEEPEST:
                verdict = _walk(ruleset, (*place[:2], target), packet, depth + 1)
                if verdict != "return":
                    return verdict
                if "goto" in statement:
                    return "return" if depth else _policy(ruleset, place)
                return None
            case dict() if IGNORED & statement.keys():
                pass
            case _:
                return None
    return None


def _policy(ruleset: Ruleset, place: Place) -> Verdict:
    return "drop" if ruleset.chains[place].get("policy") == "drop" else "accept"


def _holds(asked: Mapping[str, Any], packet: Packet) -> bool:
    """Surely; False where the packet leaves it open."""
    left, right, op = asked.get("left"), asked.get("right"), asked.get("op", "==")
    known = _mark(left, right, packet)
    if known is not None:
        return known is (op != "!=")
    match left:
        case {"fib": {"result": "oif", "flags": list(flags)}} if right is False and "mark" in flags:
            return packet.facts.get("fib") == "missing"
    value = packet.facts.get(_name(left))
    if value is None or op not in ("==", "!=", "in") or str(right).startswith("@"):
        return False
    among = any(value == one or (one.endswith("*") and value.startswith(one[:-1])) for one in _values(right))
    return among is (op != "!=")


def _mark(left: Any, right: Any, packet: Packet) -> bool | None:
    """Whether a mark is as asked; None where that is not asked, or open."""
    match (left, right):
        case ({"&": [dict(what), int(mask)]}, int(value)):
            pass
        case (dict(what), {"prefix": {"addr": int(value), "len": int(bits)}}):
            mask = 0xFFFFFFFF << 32 - bits & 0xFFFFFFFF  # how nft lists a mask of leading ones
        case _:
            return None
    bits, has = packet.marks.get(_name(what), (0, 0))
    return bool(has & mask == value) if mask & ~bits == 0 else None


def _name(left: Any) -> str:
    match left:
        case {"meta": {"key": "iif" | "oif" as key}}:
            return f"meta {key}name"
        case {"meta": {"key": str(key)}}:
            return f"meta {key}"
        case {"ct": {"key": str(key)}}:
            return f"ct {key}"
        case {"payload": {"protocol": str(protocol), "field": str(item)}}:
            return f"{protocol} {item}"
    return ""


def _values(right: Any) -> list[str]:
    match right:
        case {"set": list(values)} | list(values):
            return [str(value) for value in values]
    return [str(right)]


def _asked(statement: Any) -> tuple[str, str] | None:
    """A plain comparison."""
    match statement:
        case {"match": {"op": "==", "left": left, "right": str() | int() as right}}:
            return _name(left), str(right)
    return None


def _set(names: tuple[str, ...]) -> str:
    quoted = [quote(name) for name in names]
    return quoted[0] if len(quoted) == 1 else f"{{ {', '.join(quoted)} }}"
