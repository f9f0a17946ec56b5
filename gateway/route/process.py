"""Process items as bits that BPF can look up: path, name, uid, gids and cgroup each set bits of one mask. Pure.

One bit for each distinct item, so that a mask is the list of items that hold. Which expressions hold for a path, and
what a cgroup is in, userspace finds out when it meets one (``ProcessPlan.judged``, ``placed``).
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from gateway.kernel.plan import ProcessPlan
from gateway.route.item.base import Item
from gateway.route.item.pattern import Patterns
from gateway.route.item.process_path_regex import ProcessPathRegex

BITS = 64
MOST_COMBINATIONS = 100_000
MOST_WITH_GROUPS = 1024
"""Combinations in all where groups are asked for: a process may be in any number of them."""
MOST_WITH_EXPRESSIONS = 64
"""What expressions set together for one path: six of them in every way."""


class ProcessAtoms:
    """``items``: atom number to item. ``users``, ``groups``: name to number; one that is missing holds for nobody."""

    def __init__(self, items: Mapping[int, Item], users: Mapping[str, int], groups: Mapping[str, int]) -> None:
        self.atoms = list(items)
        self.items = items
        self.bit = {atom: 1 << place for place, atom in enumerate(self.atoms[:BITS])}
        self.expressions: dict[Patterns, int] = {}
        self.paths: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.uids: dict[int, int] = {}
        self.gids: dict[int, int] = {}
        self.cgroups: dict[str, int] = {}
        for atom, bit in self.bit.items():
            key, values = items[atom].key, cast(Any, items[atom]).value
            if key == "process_path":
                self._add(self.paths, values, bit)
            elif key == "process_path_regex":
                self._add(self.expressions, [cast(ProcessPathRegex, items[atom]).patterns], bit)
            elif key == "process_name":
                self._add(self.names, values, bit)
            elif key == "user_id":
                self._add(self.uids, [uid for uid in values if uid >= 0], bit)
            elif key == "user":
                self._add(self.uids, [users[name] for name in values if name in users], bit)
            elif key == "group_id":
                self._add(self.gids, values, bit)
            elif key == "group":
                self._add(self.gids, [groups[name] for name in values if name in groups], bit)
            elif key == "cgroup":
                self._add(self.cgroups, values, bit)
        self.listed = sum(self.bit[a] for a in self.bit if items[a].key == "process_path")
        for path in self.paths:
            for expression, bit in self.expressions.items():
                if expression.search(path):
                    self.paths[path] |= bit

    @staticmethod
    def _add(table: dict[Any, int], keys: Any, bit: int) -> None:
        for key in keys:
            table[key] = table.get(key, 0) | bit

    def masks(self) -> list[int]:
        """Masks that a socket can have, the likely ones (one program, one user, one group) first; all of them, but for
        many groups or many expressions at once."""
        expressions = self._unions(self.expressions, MOST_WITH_EXPRESSIONS)
        pairs = list(self._combinations(expressions, self._places()))
        unions = self._unions(self.gids, MOST_WITH_GROUPS // len(pairs))
        found = sorted(((weight + more, mask | union) for weight, mask in pairs for union, more in unions.items()))
        return list(dict.fromkeys(mask for _, mask in found))

    @staticmethod
    def _unions(bits: Mapping[Any, int], most: int) -> dict[int, int]:
        """What several keys set together, with how many of them it takes: none and each alone, then ``most`` in all."""
        single = sorted(set(bits.values()))
        found = {0: 0}
        latest = [0]
        while latest and (len(found) == 1 or len(found) < most):
            unions = dict.fromkeys(old | one for old in latest for one in single)
            latest = [mask for mask in unions if mask not in found]
            if len(found) > 1:
                latest = latest[: most - len(found)]
            found |= dict.fromkeys(latest, max(found.values()) + 1)
        return found

    def _places(self) -> set[int]:
        """What a cgroup sets: it is in the one that is listed next above it, and in those above that."""
        plan = self.plan(())
        return {plan.placed(path) for path in self.cgroups}

    def _combinations(self, expressions: Iterable[int], places: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
        """Of programs, users and cgroups: how many of them are asked for, and what they set. ``expressions``: what may
        hold for programs that no item lists."""
        programs = {found | name for found in expressions for name in {0, *self.names.values()}}
        for path, bits in self.paths.items():
            programs.add(bits | self.names.get(path.rpartition("/")[2], 0))
        axes = [sorted(set(axis) - {0}) for axis in (programs, self.uids.values(), places)]
        every = (
            (weight, functools.reduce(operator.or_, masks, 0))
            for weight in range(len(axes) + 1)
            for chosen in itertools.combinations(axes, weight)
            for masks in itertools.product(*chosen)
        )
        return itertools.islice(every, MOST_COMBINATIONS)

    def known(self, mask: int) -> dict[int, bool]:
        """Answers of the atoms for a socket with ``mask``; what stays open is left out."""
        return {atom: bool(mask & bit) for atom, bit in self.bit.items()}

    def vectors(self) -> list[tuple[int, int]]:
        """For ``feasible.Vectors``: every combination, atoms as bits of their number. Those of groups and cgroups stay
        open, and expressions for programs that no item lists: that one of them may imply another costs a verdict, and
        only for unknown sockets."""
        loose = {atom for atom, item in self.items.items() if item.key in ("group", "group_id", "cgroup")}
        regexes = {atom for atom, item in self.items.items() if item.key == "process_path_regex"}
        out = []
        for _, mask in self._combinations([0]):
            free = loose if mask & self.listed else loose | regexes
            known = {atom: value for atom, value in self.known(mask).items() if atom not in free}
            true = sum(1 << atom for atom, value in known.items() if value)
            out.append((true, sum(1 << atom for atom in self.atoms if atom not in known)))
        return out

    def plan(self, classes: tuple[tuple[int, int], ...]) -> ProcessPlan:
        return ProcessPlan(
            tuple(sorted(self.paths.items())), tuple(sorted(self.names.items())), tuple(sorted(self.uids.items())),
            tuple(sorted(self.gids.items())), classes, tuple(self.expressions.items()),
            tuple(sorted(self.cgroups.items())),
        )  # fmt: skip
