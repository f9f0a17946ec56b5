"""Which member carries new flows. Pure.

As sing-box 1.12.12 chooses: who is in use stays unless another is quicker by more than the tolerance, and so it is with
the earlier of the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def choose(members: Iterable[str], delays: Mapping[str, int], current: str, tolerance: int) -> str:
    """Of ``members``, which carry the network in question, in the order of the configuration; ``delays`` in
    milliseconds, of those whose last probe was answered. Where there is none ``current`` stays, else the first is it;
    "" without members."""
    tags = list(members)
    best = current if current in tags and current in delays else ""
    for tag in tags:
        if tag in delays and (not best or delays[tag] + tolerance < delays[best]):
            best = tag
    if best:
        return best
    return current if current in tags else next(iter(tags), "")
