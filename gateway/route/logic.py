"""Boolean functions over numbered atoms, as reduced ordered decision diagrams. Pure.

A function is True, False, or a ``Node`` that asks one atom (a number) and goes on in one of two functions. One
``Space`` makes all nodes of a configuration and makes none twice, so equal functions are the same object: that is how
the compiler finds flows that the rules treat alike. Atoms are asked in the order of their numbers, the order in which
the rules mention them; conditions of rules stay small in that order.
"""

from __future__ import annotations

from collections.abc import Mapping


class Node:
    """``atom`` holds: ``yes``, else ``no``. Compared by identity."""

    __slots__ = ("atom", "no", "yes")

    def __init__(self, atom: int, yes: Expr, no: Expr) -> None:
        self.atom, self.yes, self.no = atom, yes, no


Expr = bool | Node


class Space:
    """Where the nodes of one configuration live."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, Expr, Expr], Node] = {}
        self._chosen: dict[tuple[Expr, Expr, Expr], Expr] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def _node(self, atom: int, yes: Expr, no: Expr) -> Expr:
        if yes is no:
            return yes
        key = (atom, yes, no)
        found = self._nodes.get(key)
        if found is None:
            found = self._nodes[key] = Node(atom, yes, no)
        return found

    def atom(self, number: int) -> Expr:
        return self._node(number, True, False)

    def choose(self, condition: Expr, yes: Expr, no: Expr) -> Expr:
        """``yes`` where ``condition`` holds, else ``no``."""
        if condition is True or yes is no:
            return yes
        if condition is False:
            return no
        if yes is True and no is False:
            return condition
        key = (condition, yes, no)
        found = self._chosen.get(key)
        if found is None:
            parts = [part for part in key if isinstance(part, Node)]
            top = min(part.atom for part in parts)
            high = [part.yes if isinstance(part, Node) and part.atom == top else part for part in key]
            low = [part.no if isinstance(part, Node) and part.atom == top else part for part in key]
            found = self._chosen[key] = self._node(top, self.choose(*high), self.choose(*low))
        return found

    def negate(self, expr: Expr) -> Expr:
        return self.choose(expr, False, True)

    def both(self, *parts: Expr) -> Expr:
        out: Expr = True
        for part in reversed(parts):
            out = self.choose(part, out, False)
        return out

    def either(self, *parts: Expr) -> Expr:
        out: Expr = False
        for part in reversed(parts):
            out = self.choose(part, True, out)
        return out

    def restrict(self, expr: Expr, known: Mapping[int, bool]) -> Expr:
        """``expr`` with the known atoms put in."""
        if isinstance(expr, bool) or not known:
            return expr
        return self._restrict(expr, known, {})

    def _restrict(self, expr: Expr, known: Mapping[int, bool], done: dict[Node, Expr]) -> Expr:
        if isinstance(expr, bool):
            return expr
        found = done.get(expr)
        if found is None:
            value = known.get(expr.atom)
            if value is None:
                found = self._node(
                    expr.atom, self._restrict(expr.yes, known, done), self._restrict(expr.no, known, done)
                )
            else:
                found = self._restrict(expr.yes if value else expr.no, known, done)
            done[expr] = found
        return found


def follow(expr: Expr, known: Mapping[int, bool]) -> Expr:
    """Down to the first atom that is not known; the answer where none is left."""
    while isinstance(expr, Node):
        value = known.get(expr.atom)
        if value is None:
            return expr
        expr = expr.yes if value else expr.no
    return expr


def atoms(expr: Expr) -> set[int]:
    found: set[int] = set()
    seen: set[Node] = set()
    todo = [expr]
    while todo:
        one = todo.pop()
        if isinstance(one, Node) and one not in seen:
            seen.add(one)
            found.add(one.atom)
            todo += (one.yes, one.no)
    return found
