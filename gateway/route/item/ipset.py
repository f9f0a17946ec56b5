"""A set of addresses as sorted ranges, asked by bisection. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from gateway.config.fields import Prefix

Range = tuple[int, int]
Point = tuple[int, int]
"""(family 4 or 6, address as a number)."""


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Inclusive ranges, sorted, disjoint, with neighbours joined."""
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and first <= out[-1][1] + 1:
            if last > out[-1][1]:
                out[-1] = (out[-1][0], last)
        else:
            out.append((first, last))
    return tuple(out)


class IPSet:
    """Inclusive ranges of both families; hashable by content."""

    __slots__ = ("_hash", "first4", "first6", "ranges4", "ranges6")

    def __init__(self, ranges4: Iterable[Range] = (), ranges6: Iterable[Range] = ()) -> None:
        self.ranges4 = merged(ranges4)
        self.ranges6 = merged(ranges6)
        self.first4 = [first for first, _ in self.ranges4]
        self.first6 = [first for first, _ in self.ranges6]
        self._hash = hash((self.ranges4, self.ranges6))

    @classmethod
    def of(cls, prefixes: Iterable[str]) -> IPSet:
        """From CIDR text or single addresses. Raises ValueError."""
        ranges: dict[int, list[Range]] = {4: [], 6: []}
        for text in prefixes:
            network = Prefix.parse(text).network
            ranges[network.version].append((int(network.network_address), int(network.broadcast_address)))
        return cls(ranges[4], ranges[6])

    def __contains__(self, point: Point) -> bool:
        family, address = point
        if family == 4:
            at = bisect_right(self.first4, address) - 1
            return at >= 0 and address <= self.ranges4[at][1]
        at = bisect_right(self.first6, address) - 1
        return at >= 0 and address <= self.ranges6[at][1]

    def ranges(self, family: int) -> tuple[Range, ...]:
        return self.ranges4 if family == 4 else self.ranges6

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IPSet) and (self.ranges4, self.ranges6) == (other.ranges4, other.ranges6)

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        return len(self.ranges4) + len(self.ranges6)


PRIVATE = IPSet.of([
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16", "0.0.0.0",
    "fc00::/7", "::1", "ff00::/8", "fe80::/10", "::",
])  # fmt: skip
"""What sing-box calls private: private use, loopback, multicast, link-local and unspecified."""
