"""Process items as bits that BPF can look up: path, name and uid each set bits of one mask. Pure.

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


class ProcessAtoms:
    """``items``: atom number to item. ``users``: user name to uid; a name that is missing holds for nobody."""

    def __init__(self, items: Mapping[int, Item], users: Mapping[str, int]) -> None:
        self.atoms = list(items)
        self.items = items
        self.bit = {atom: 1 << place for place, atom in enumerate(self.atoms[:BITS])}
        self.regexes = [atom for atom in self.atoms if isinstance(items[atom], ProcessPathRegex)]
        self.paths: dict[str, int] = {}
        self.names: dict[str, int] = {}
        self.uids: dict[int, int] = {}
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
        """Every mask that a socket can have, the likely ones (one program, one user) first."""
        return list(dict.fromkeys(mask for mask in self._combinations()))

    def _combinations(self) -> Iterator[int]:
        programs = {0}
        programs |= set(self.names.values())
        for path, bits in self.paths.items():
            programs.add(bits | self.names.get(path.rpartition("/")[2], 0))
        users = {0} | set(self.uids.values())
        pairs = sorted(((program, user) for program in programs for user in users), key=lambda pair: (
            bool(pair[0]) + bool(pair[1]), pair))  # fmt: skip
        for program, user in pairs[:MOST_COMBINATIONS]:
            yield program | user

    def known(self, mask: int) -> dict[int, bool]:
        """Answers of the atoms for a socket with ``mask``; what stays open is left out."""
        path_known = bool(mask & self.listed)
        return {
            atom: bool(mask & bit) for atom, bit in self.bit.items() if path_known or atom not in self.regexes
        }  # fmt: skip

    def vectors(self) -> list[tuple[int, int]]:
        """For ``feasible.Vectors``: every combination, atoms as bits of their number."""
        out = []
        for mask in self.masks():
            known = self.known(mask)
            true = sum(1 << atom for atom, value in known.items() if value)
            out.append((true, sum(1 << atom for atom in self.atoms if atom not in known)))
        return out

    def plan(self, classes: tuple[tuple[int, int], ...]) -> ProcessPlan:
        return ProcessPlan(
            tuple(sorted(self.paths.items())), tuple(sorted(self.names.items())), tuple(sorted(self.uids.items())),
            (), classes,
        )  # fmt: skip
