"""Process items as bits that BPF can look up: path, name, uid and gids each set bits of one mask. Pure.

One bit for each distinct item, so that a mask is the list of items that hold. An expression over paths can only be
answered for paths that other items list; for any other executable it stays open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from gateway.kernel.plan import ProcessPlan
from gateway.route.item.base import Item
from gateway.route.item.process_path_regex import ProcessPathRegex

BITS = 64
MOST_COMBINATIONS = 100_000
MOST_WITH_GROUPS = 1024
"""Combinations in all where groups are asked for: a process may be in any number of them."""


class ProcessAtoms:
    """``items``: atom number to item. ``users``, ``groups``: name to number; one that is missing holds for nobody."""

    def __init__(self, items: Mapping[int, Item], users: Mapping[str, int], groups: Mapping[str, int]) -> None:
        self.atoms = list(items)
        self.items = items
        self.bit = {atom: 1 << place for place, atom in enumerate(self.atoms[:BITS])}
        self.regexes = [atom for atom in self.atoms if isinstance(items[atom], ProcessPathRegex)]
        self.paths: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.uids: dict[int, int] = {}
        self.gids: dict[int, int] = {}
        for atom, bit in self.bit.items():
            key, values = items[atom].key, cast(Any, items[atom]).value
            if key == "process_path":
                self._add(self.paths, values, bit)
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
        self.listed = sum(self.bit[a] for a in self.bit if items[a].key == "process_path")
        for path in self.paths:
            for atom in self.regexes:
                if atom in self.bit and cast(ProcessPathRegex, items[atom]).holds(path):
                    self.paths[path] |= self.bit[atom]

    @staticmethod
    def _add(table: dict[Any, int], keys: Any, bit: int) -> None:
        for key in keys:
            table[key] = table.get(key, 0) | bit

    def masks(self) -> list[int]:
        """Masks that a socket can have, the likely ones (one program, one user, one group) first; all of them, but for
        many groups at once."""
        pairs = list(self._combinations())
        unions = self._unions(MOST_WITH_GROUPS // len(pairs))
        found = sorted(((weight + more, mask | union) for weight, mask in pairs for union, more in unions.items()))
        return list(dict.fromkeys(mask for _, mask in found))

    def _unions(self, most: int) -> dict[int, int]:
        """What groups set together, with how many of them it takes: none and each alone, then ``most`` in all."""
        single = sorted(set(self.gids.values()))
        found = {0: 0}
        latest = [0]
        while latest and (len(found) == 1 or len(found) < most):
            unions = dict.fromkeys(old | one for old in latest for one in single)
            latest = [mask for mask in unions if mask not in found]
            if len(found) > 1:
                latest = latest[: most - len(found)]
            found |= dict.fromkeys(latest, max(found.values()) + 1)
        return found

    def _combinations(self) -> Iterator[tuple[int, int]]:
        """Of programs and users: how many of the two are asked for, and what they set."""
        programs = {0}
        programs |= set(self.names.values())
        for path, bits in self.paths.items():
            programs.add(bits | self.names.get(path.rpartition("/")[2], 0))
        users = {0} | set(self.uids.values())
        pairs = sorted(((program, user) for program in programs for user in users), key=lambda pair: (
            bool(pair[0]) + bool(pair[1]), pair))  # fmt: skip
        for program, user in pairs[:MOST_COMBINATIONS]:
            yield bool(program) + bool(user), program | user

    def known(self, mask: int) -> dict[int, bool]:
        """Answers of the atoms for a socket with ``mask``; what stays open is left out."""
        path_known = bool(mask & self.listed)
        return {
            atom: bool(mask & bit) for atom, bit in self.bit.items() if path_known or atom not in self.regexes
        }  # fmt: skip

    def vectors(self) -> list[tuple[int, int]]:
        """For ``feasible.Vectors``: every combination, atoms as bits of their number. Those of groups stay open: that
        one of them may imply another costs a verdict, and only for unknown sockets."""
        groups = {atom for atom, item in self.items.items() if item.key in ("group", "group_id")}
        out = []
        for _, mask in self._combinations():
            known = {atom: value for atom, value in self.known(mask).items() if atom not in groups}
            true = sum(1 << atom for atom, value in known.items() if value)
            out.append((true, sum(1 << atom for atom in self.atoms if atom not in known)))
        return out

    def plan(self, classes: tuple[tuple[int, int], ...]) -> ProcessPlan:
        return ProcessPlan(
            tuple(sorted(self.paths.items())), tuple(sorted(self.names.items())), tuple(sorted(self.uids.items())),
            tuple(sorted(self.gids.items())), classes,
        )  # fmt: skip
