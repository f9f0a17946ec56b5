"""From one content of the owned table to the next, in three transactions: what is new, the switch, what is old. Pure.

One would not do. Linux makes the rules of a transaction valid first and what new sets with intervals hold some hundred
microseconds later (nf_tables_commit and the sets' own commit; seen with Linux 6.18). In between a rule finds an empty
set, and flows get the class that is left. So sets with intervals, and rules with such a set of their own, stand and are
filled before anything leads to them.

Interval maps of the same name have the same content and stay; learned sets stay with what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gateway.kernel.nft.steer_render import TABLE, Objects, interval_commands, learned_commands
from gateway.kernel.plan import MOST_LEARNED, LearnedChange


def prepare(old: Objects, new: Objects) -> Iterator[str]:
    """Commands that add what only ``new`` has, and that nothing leads to yet. They must not share a generation."""
    for name, spans in new.intervals.items():
        if name not in old.intervals:
            yield from interval_commands(name, spans)
    for name in sorted(new.learned - old.learned):
        family = 4 if name.startswith("learned4_") else 6
        yield f"add set {TABLE} {name} {{ type ipv{family}_addr; flags timeout; size {MOST_LEARNED}; }}"
    for name in new.chains:
        yield f"add chain {TABLE} {name}"
    for name, rules in new.chains.items():
        yield from (f"add rule {TABLE} {name} {rule}" for rule in rules)


def switch(old: Objects, new: Objects, changes: Iterable[LearnedChange] = ()) -> Iterator[str]:
    """After ``prepare``: commands from which on ``new`` is in force."""
    for name, elements in new.sets.items():
        yield from _set(name, old.sets.get(name, frozenset()), elements)
    for change in changes:
        yield from learned_commands(change)
    yield from fixed(old.fixed, new.fixed)


def clear(old: Objects, new: Objects) -> Iterator[str]:
    """After ``switch``: commands that take away what only ``old`` has. (With ``old`` and ``new`` exchanged: after
    ``prepare``, all as it was.)"""
    # All chains are emptied before the first is deleted: they name each other.
    yield from (f"flush chain {TABLE} {name}" for name in old.chains)
    yield from (f"delete chain {TABLE} {name}" for name in old.chains)
    yield from (f"delete set {TABLE} {name}" for name in sorted(old.learned - new.learned))
    yield from (f"delete map {TABLE} {name}" for name in old.intervals if name not in new.intervals)


def fixed(old: Mapping[str, tuple[str, ...]], new: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    """Commands that give the skeleton's chains other rules."""
    for name, rules in new.items():
        if rules != old.get(name, ()):
            yield f"flush chain {TABLE} {name}"
            yield from (f"add rule {TABLE} {name} {rule}" for rule in rules)


def _set(name: str, old: frozenset[str], new: frozenset[str]) -> Iterator[str]:
    if gone := old - new:
        yield f"delete element {TABLE} {name} {{ {', '.join(sorted(gone))} }}"
    if fresh := new - old:
        yield f"add element {TABLE} {name} {{ {', '.join(sorted(fresh))} }}"
