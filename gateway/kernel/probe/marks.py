"""Who else reads or writes the byte of the mark that is ours."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from typing import Any

from gateway.kernel import mark
from gateway.kernel.probe.finding import TIMEOUT, Finding, answer, tool
from gateway.kernel.probe.ruleset import PRIORITY, Place, Ruleset, named

OTHERS = 0xFFFFFFFF & ~mark.BYTE


def ip_rules() -> Iterator[Finding]:
    """Foreign ip rules that read our byte, or that take every packet before ours can."""
    found, early = [], []
    for family in ("-4", "-6"):
        rules = answer("ip", family, "-j", "rule")
        if rules is None:
            yield Finding("ip-rules", False, "ip is not installed", "apt install iproute2", needed=False)
            return
        found += [(family, rule) for rule in rules if overlaps(rule)]
        early += [(family, rule) for rule in rules if precedes(rule)]
    detail = "; ".join(f"{family} priority {rule.get('priority')} fwmark {rule['fwmark']}" for family, rule in found)
    # Of several with one priority the first would go.
    remedy = "; ".join(
        f"ip {family} rule del priority {rule.get('priority')} "
        f"fwmark {rule['fwmark']}/{rule.get('fwmask', '0xffffffff')}"
        for family, rule in found
    )
    yield Finding("ip-rules", not found, detail and f"{detail}: bits 24-31 are the gateway's", remedy)
    detail = "; ".join(f"{family} priority {rule['priority']}" for family, rule in early)
    if detail:
        detail += f": before the gateway's ({mark.RULE_PRIORITY}), which may never see its packets"
    yield Finding("ip-rule-order", not early, detail, needed=False)


def overlaps(rule: dict[str, Any]) -> bool:
    """Does an entry of ``ip -j rule`` test a bit of our byte? Not where it is our own rule."""
    own = (rule.get("priority") == mark.RULE_PRIORITY, rule.get("protocol") == str(mark.TUN_PROTO))
    if "fwmark" not in rule or any(own):
        return False
    mask = int(rule.get("fwmask", "0xffffffff"), 16)
    # A test of the whole mark for a value below bit 24 fails on each packet that we mark.
    return bool(mask & mark.BYTE)


def precedes(rule: dict[str, Any]) -> bool:
    """Does an entry of ``ip -j rule`` come before ours? Not the kernel's first, the table of local addresses."""
    return 0 < int(rule.get("priority", 0)) < mark.RULE_PRIORITY


def foreign_marks(ruleset: Ruleset) -> Iterator[Finding]:
    """Rules of others that write a mark without a mask."""
    found = [
        f"{named(place, rule)} writes our byte of the {key}: {instead}"
        for place, rule, key, instead in writing(ruleset)
    ]
    for family, program in (("ip", "iptables-save"), ("ip6", "ip6tables-save")):
        # nft lists these rules without their numbers.
        path = tool(program)
        if (family, "mangle") in ruleset.tables and path is not None:
            done = subprocess.run([path, "-t", "mangle"], capture_output=True, text=True, timeout=TIMEOUT, check=True)
            found += [f"{program}: {line} writes our byte: give it a mask" for line in unmasked(done.stdout)]
    yield Finding("foreign-marks", not found, "; ".join(found))


def unmasked(saved: str) -> Iterator[str]:
    """Lines of ``iptables-save`` that write our byte of either mark (iptables-extensions(8), MARK and CONNMARK)."""
    for line in saved.splitlines():
        if " -j MARK " not in line and " -j CONNMARK " not in line:
            continue
        words = dict(itertools.pairwise(line.split()))
        if "--set-xmark" in words:
            value, _, mask = words["--set-xmark"].partition("/")
            written = int(value, 0) | int(mask or "0xffffffff", 0)
        else:
            written = int(words.get("--ctmask" if "--save-mark" in line else "--nfmask", "0xffffffff"), 0)
        if written & mark.BYTE:
            yield line


def writing(ruleset: Ruleset) -> Iterator[tuple[Place, dict[str, Any], str, str]]:
    """Rules that change our byte where it counts: the flow's class anywhere, the routing bit from our own chains to the
    routing decision. With what is written, and what to write instead."""
    for place, rule in ruleset.foreign():
        for statement in rule.get("expr", []):
            match statement:
                case {"mangle": {"key": {"meta": {"key": "mark"}} | {"ct": {"key": "mark"}} as key, "value": value}}:
                    (kind,) = key
                    kept, put = _kept(value, key)
                    hurts = mark.BYTE & ~kept if kind == "ct" or _late(ruleset, place) else mark.BYTE & put
                    if hurts:
                        yield place, rule, f"{kind} mark", _instead(kind, value)


def _late(ruleset: Ruleset, place: Place) -> bool:
    return any(
        chain["hook"] in ("prerouting", "output") and chain["prio"] >= PRIORITY for chain in ruleset.hooks(place)
    )


def _kept(value: Any, key: Any) -> tuple[int, int]:
    """Bits of the mark ``key`` that stay what they are, and those that may be set, where ``value`` is written to it."""
    match value:
        case int():
            return 0, value
        case {"&": [inner, int(bits)]}:
            kept, put = _kept(inner, key)
            return kept & bits, put & bits
        case {"|": [inner, int(bits)]} | {"^": [inner, int(bits)]}:
            kept, put = _kept(inner, key)
            return kept & ~bits, put | bits
        case dict() if value == key:
            return 0xFFFFFFFF, 0
    return 0, 0xFFFFFFFF


def _instead(kind: str, value: Any) -> str:
    """What the rule may write."""
    if isinstance(value, int):
        return f"let it write {kind} mark set {kind} mark & {mark.BYTE:#010x} | {value & OTHERS:#x}"
    return f"let it change bits of {OTHERS:#010x} alone"
