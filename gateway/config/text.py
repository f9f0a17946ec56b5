"""JSON with comments: reading it, and finding the line of a JSON path in it. Pure.

Comments (``//``, ``#``, ``/* */``) and trailing commas are overwritten with spaces, so offsets and lines stay true.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.core.errors import ConfigError

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*|#[^\n]*|/\*.*?\*/|/\*.*|,(?=\s*[}\]])', re.DOTALL)
_BLANK = re.compile(r"[^\n]")
_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")

Path = tuple[str | int, ...]


def strip(text: str) -> str:
    """``text`` with comments and trailing commas blanked out; same length, same lines."""

    def blank(found: re.Match[str]) -> str:
        token = found[0]
        # A comma with nothing before it separates nothing: "[,]" stays wrong.
        lone = token == "," and found.string[: found.start()].rstrip()[-1:] in ("", "[", "{", ",")
        return token if lone or token.startswith('"') else _BLANK.sub(" ", token)

    # A comma may be trailing only once the comment behind it is gone, so the second pass is for commas.
    return _TOKEN.sub(blank, _TOKEN.sub(blank, text))


def parse(text: str, file: str) -> Any:
    """The value of a whole file. Raises ConfigError with line for bad syntax, a duplicate key, or nesting deeper than
    Python's stack."""
    clean = strip(text)
    try:
        value = json.loads(clean, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"not JSON: {error.msg} (column {error.colno})", file=file, line=error.lineno) from None
    except _DuplicateKeyError as error:
        raise ConfigError(
            f'key "{error}" stands twice in one object', file=file, line=_twice(clean, str(error))
        ) from None
    except ValueError as error:  # Python's limit on the digits of a number
        raise ConfigError(f"not JSON: a number is too long ({error})", file=file) from None
    except RecursionError:
        raise ConfigError("nested too deeply", file=file) from None
    return value


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _twice(text: str, key: str) -> int:
    places = [found.start() for found in re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text)]
    return text.count("\n", 0, places[1 if len(places) > 1 else 0]) + 1 if places else 0


def split_path(path: str) -> Path:
    """``outbounds[0].server`` as ("outbounds", 0, "server"). Keys with dots in them come out in pieces."""
    return tuple(int(found[2]) if found[2] else found[1] for found in _STEP.finditer(path.removeprefix("$")))


def line_of(text: str, path: Path) -> int:
    """Line (from 1) where the value at ``path`` stands; of its nearest ancestor where it does not exist."""
    clean = strip(text)
    decoder = json.JSONDecoder()
    at = _space(clean, 0)
    for step in path:
        found = _child(clean, at, step, decoder)
        if found < 0:
            break
        at = found
    return clean.count("\n", 0, at) + 1


def _space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _child(text: str, at: int, step: str | int, decoder: json.JSONDecoder) -> int:
    """Offset of the member ``step`` of the container at ``at``, -1 where there is none."""
    if at >= len(text) or text[at] != ("[" if isinstance(step, int) else "{"):
        return -1
    at, index = _space(text, at + 1), 0
    while at < len(text) and text[at] not in "]}":
        key: str | int = index
        here = at
        if isinstance(step, str):
            key, at = decoder.raw_decode(text, at)
            at = _space(text, _space(text, at) + 1)
        if key == step:
            return here if isinstance(step, str) and text[at] not in "{[" else at
        _, at = decoder.raw_decode(text, at)
        at = _space(text, at)
        if at < len(text) and text[at] == ",":
            at = _space(text, at + 1)
        index += 1
    return -1
