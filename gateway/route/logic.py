"""Boolean expressions over numbered atoms, as nested tuples that compare by content. Pure.

An expression is True, False, an atom (int, never bool), or ``("&", ...)``, ``("|", ...)``, ``("!", e)``. Equal tuples
are equal functions (not the converse), which is how the compiler finds flows that the rules treat alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Expr = Any
"""bool | int | tuple: recursive, so mypy is told no more."""


def negate(expr: Expr) -> Expr:
    if expr is True or expr is False:
        return not expr
    if isinstance(expr, tuple) and expr[0] == "!":
        return expr[1]
    return ("!", expr)


def _join(op: str, parts: Iterable[Expr], neutral: bool) -> Expr:
    out: list[Expr] = []
    for part in parts:
        if part is neutral:
            continue
        if part is (not neutral):
            return part
        for one in part[1:] if isinstance(part, tuple) and part[0] == op else (part,):
            if one not in out:
                out.append(one)
    if not out:
        return neutral
    return out[0] if len(out) == 1 else (op, *out)


def both(*parts: Expr) -> Expr:
    return _join("&", parts, True)


def either(*parts: Expr) -> Expr:
    return _join("|", parts, False)


def choose(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """``yes`` where ``condition`` holds, else ``no``."""
    if condition is True or yes == no and type(yes) is type(no):
        return yes
    if condition is False:
        return no
    return either(both(condition, yes), both(negate(condition), no))


def restrict(expr: Expr, known: Mapping[int, bool]) -> Expr:
    """``expr`` with the known atoms put in."""
    if expr is True or expr is False:
        return expr
    if isinstance(expr, int):
        return known.get(expr, expr)
    op = expr[0]
    if op == "!":
        return negate(restrict(expr[1], known))
    stop = op == "|"
    out: list[Expr] = []
    for part in expr[1:]:
        part = restrict(part, known)
        if part is stop:
            return stop
        if part is not (not stop):
            out.append(part)
    return _join(op, out, not stop)


def atoms(expr: Expr) -> set[int]:
    if isinstance(expr, bool):
        return set()
    if isinstance(expr, int):
        return {expr}
    return set().union(*(atoms(part) for part in expr[1:]))


def first(expr: Expr) -> int:
    """The leftmost atom of an expression that is neither True nor False."""
    while isinstance(expr, tuple):
        expr = expr[1]
    return int(expr)
