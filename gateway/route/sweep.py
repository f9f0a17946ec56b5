"""Cuts a line of numbers (addresses, ports) into segments on which every range set answers alike. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from gateway.route.item.ipset import Range


class Segment(NamedTuple):
    """``first..last``, and a bit for every range set that holds it."""

    first: int
    last: int
    mask: int


def sweep(sets: Mapping[int, Iterable[Range]], top: int) -> list[Segment]:
    """Segments that cover ``0..top`` without gap; neighbours differ. ``sets``: bit number to disjoint ranges."""
    flips: dict[int, int] = {}
    for bit, ranges in sets.items():
        flag = 1 << bit
        for first, last in ranges:
            flips[first] = flips.get(first, 0) ^ flag
            flips[last + 1] = flips.get(last + 1, 0) ^ flag
    out: list[Segment] = []
    start = mask = 0
    for place in sorted(flips):
        flip = flips[place]
        if not flip or place > top:
            continue
        if place > start:
            out.append(Segment(start, place - 1, mask))
        mask ^= flip
        start = place
    out.append(Segment(start, top, mask))
    return out
