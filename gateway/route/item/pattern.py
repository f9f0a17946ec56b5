"""Go's regular expressions: RE2 itself. Pure.

Go's ``regexp`` and Google's RE2 share one syntax and one semantics, which Python's ``re`` does not (no backreferences
or lookaround, other flags, linear time); so the library is the same family, not a translation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

try:
    import re2
except ImportError:  # it has no wheel for musl
    re2 = None
else:
    _OPTIONS = re2.Options()
    _OPTIONS.log_errors = False

MISSING = "RE2 is not installed here (the Python package google-re2), and no other engine means the same"


class Patterns:
    """Several expressions, searched unanchored; any may match. Equal where the texts are."""

    __slots__ = ("_compiled", "_texts")

    def __init__(self, expressions: Iterable[str]) -> None:
        """Raises ValueError naming the expression that RE2 refuses, and for any where there is no RE2."""
        self._compiled: list[Any] = []
        self._texts = tuple(expressions)
        for expression in self._texts:
            if re2 is None:
                raise ValueError(f'"{expression}": {MISSING}')
            try:
                self._compiled.append(re2.compile(expression, _OPTIONS))
            except re2.error as error:
                reason = error.args[0] if error.args else error
                reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
                raise ValueError(f'"{expression}" is not a regular expression of RE2: {reason}') from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and self._texts == other._texts

    def __hash__(self) -> int:
        return hash(self._texts)

    def search(self, text: str) -> bool:
        return any(compiled.search(text) for compiled in self._compiled)
