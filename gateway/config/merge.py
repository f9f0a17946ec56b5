"""Several configuration files as one, and the way back from a merged path to its file. Pure.

As sing-box merges: files in the order of their names; objects merge key by key, lists are joined, of two scalars the
first stays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway.config.text import Path, line_of


class Source(NamedTuple):
    """One file: ``text`` as read, ``value`` as parsed."""

    file: str
    text: str
    value: Any


def merge(sources: list[Source]) -> Any:
    """The merged value; one source comes back unchanged."""
    value = sources[0].value
    for source in sources[1:]:
        value = _join(value, source.value)
    return value


def _join(first: Any, second: Any) -> Any:
    if isinstance(first, dict) and isinstance(second, dict):
        both = {key: _join(first[key], second[key]) for key in first if key in second}
        return {**first, **{key: second[key] for key in second if key not in first}, **both}
    if isinstance(first, list) and isinstance(second, list):
        return first + second
    return first


def locate(sources: list[Source], path: Path) -> tuple[str, int]:
    """File and line of a merged path; of the nearest ancestor where the path itself does not exist."""
    candidates: list[tuple[Source, Any, Path]] = [(source, source.value, ()) for source in sources]
    for step in path:
        below: list[tuple[Source, Any, Path]] = []
        for source, value, own in candidates:
            if isinstance(step, str) and isinstance(value, dict) and step in value:
                below.append((source, value[step], (*own, step)))
            elif isinstance(step, int) and isinstance(value, list):
                if 0 <= step < len(value):
                    below = [(source, value[step], (*own, step))]
                    break
                step -= len(value)
        if not below:
            break
        candidates = below
    source, _, own = candidates[0]
    return source.file, line_of(source.text, own)
