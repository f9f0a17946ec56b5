"""Ports as ranges: what the four port items share. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.route.item.base import Item, numbers, texts
from gateway.route.item.ipset import Range, merged


class PortItem(Item):
    """``ranges``: sorted, disjoint, inclusive."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Iterable[Range]) -> None:
        self.ranges = merged(ranges)
        super().__init__(self.ranges)

    def holds(self, port: int) -> bool:
        for first, last in self.ranges:
            if port <= last:
                return port >= first
        return False

    @property
    def atom(self) -> tuple[str, object]:
        # port and port_range ask the same question
        return (self.group, self.ranges)

    def __str__(self) -> str:
        parts = [str(first) if first == last else f"{first}:{last}" for first, last in self.ranges]
        return f"{self.key}={','.join(parts[:5])}{',...' if len(parts) > 5 else ''}"


def listed(value: Any) -> list[Range]:
    """``port``: a number or a list of numbers. Raises ValueError."""
    return [(port, port) for port in numbers(value, 0, 65535)]


def ranged(value: Any) -> list[Range]:
    """``port_range``: "a:b", ":b" or "a:". Raises ValueError."""
    out = []
    for text in texts(value):
        low, colon, high = text.partition(":")
        if not colon or not all(part == "" or (part.isascii() and part.isdigit()) for part in (low, high)):
            raise ValueError(f'"{text}" is not a port range; write "1000:2000", ":2000" or "1000:"')
        first, last = int(low or 0), int(high or 65535)
        if first > 65535 or last > 65535:
            raise ValueError(f'"{text}" holds a port over 65535')
        if first <= last:
            out.append((first, last))
    return out
