"""Which answers can go together: a name below ``a.example`` is also below ``example``. Pure.

The compiler splits on what it does not know; a branch that no flow can take must not spoil a verdict. Where a question
cannot be settled (two expressions, two keywords) the branch counts as possible, which costs a kernel verdict and never
a wrong one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gateway.route.item.domain import Domain
from gateway.route.item.domain_keyword import DomainKeyword
from gateway.route.item.domain_suffix import DomainSuffix
from gateway.route.item.names import NameItem

Assignment = Mapping[int, bool]
_LETTERS = "qzxjkvwybfghpmucldrnsioate0123456789"


class Vectors:
    """Atoms whose joint answers are enumerated: (bits that are true, bits that are open) of each possibility."""

    def __init__(self, vectors: Sequence[tuple[int, int]]) -> None:
        self.vectors = list(dict.fromkeys(vectors))

    def possible(self, assigned: Assignment) -> bool:
        yes = sum(1 << atom for atom, value in assigned.items() if value)
        no = sum(1 << atom for atom, value in assigned.items() if not value)
        return any(not (yes & ~(true | free)) and not (no & true & ~free) for true, free in self.vectors)


class Names:
    """Domain items. Exact for names, suffixes and single keywords; answers are remembered."""

    def __init__(self, items: Mapping[int, NameItem]) -> None:
        self.items = items
        self._known: dict[tuple[frozenset[int], frozenset[int]], bool] = {}

    def possible(self, assigned: Assignment) -> bool:
        yes = frozenset(atom for atom, value in assigned.items() if value)
        no = frozenset(assigned) - yes
        if not yes:
            return True  # a flow without a name
        key = (yes, no)
        if key not in self._known:
            self._known[key] = self._search([self.items[atom] for atom in yes], [self.items[atom] for atom in no])
        return self._known[key]

    def _search(self, yes: list[NameItem], no: list[NameItem]) -> bool:
        names = [item for item in yes if isinstance(item, Domain)]
        if names:  # finitely many: try them all
            smallest = min(names, key=lambda item: len(item.set))
            return any(_fits(name, yes, no) for name in smallest.set)
        words = {word for item in no if isinstance(item, DomainKeyword) for word in item.words}
        opaque = [item for item in no if not isinstance(item, Domain | DomainSuffix | DomainKeyword)]
        no = [item for item in no if item not in opaque]
        label = next((letter * 20 for letter in _LETTERS if not any(letter in word for word in words)), "")
        suffixes = [item for item in yes if isinstance(item, DomainSuffix)]
        if not suffixes:
            return self._keywords(yes, words)
        if not label:
            return True
        others = [item for item in yes if not isinstance(item, DomainSuffix)]
        return any(_fits(name, suffixes, no) for item in suffixes for name in _below(item, label)) and (
            not others or self._keywords(others, words)
        )

    @staticmethod
    def _keywords(yes: list[NameItem], words: set[str]) -> bool:
        for item in yes:
            if isinstance(item, DomainKeyword) and all(any(bad in word for bad in words) for word in item.words):
                return False
        return True


def _fits(name: str, yes: Sequence[NameItem], no: Sequence[NameItem]) -> bool:
    return all(item.holds(name) for item in yes) and not any(item.holds(name) for item in no)


def _below(item: DomainSuffix, label: str) -> Iterator[str]:
    """A witness for each part of what a suffix holds: itself, and a name below it that nobody else mentions."""
    for suffix in item.set:
        if suffix.startswith("."):
            yield label + suffix
        else:
            yield suffix
            yield f"{label}.{suffix}"
