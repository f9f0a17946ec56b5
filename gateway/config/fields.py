"""The spellings of sing-box's scalar fields: durations, listable values, prefixes, marks. Pure.

msgspec calls ``dec_hook`` for the types defined here; a ValueError raised there carries the JSON path.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, TypeVar

T = TypeVar("T")

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")


class Duration(float):
    """Seconds, written as Go writes them ("300ms", "1h30m"), with sing-box's extra unit ``d``; negative allowed."""

    @classmethod
    def parse(cls, text: str) -> Duration:
        sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
        if body == "0":
            return cls(0)
        total, end = 0.0, 0
        for part in _PART.finditer(body):
            if part.start() != end:
                break
            total += float(part[1]) * _UNITS[part[2]]
            end = part.end()
        if not body or end != len(body):
            raise ValueError(f'"{text}" is not a duration; write for example "300ms", "30s" or "1h30m"')
        return cls(sign * total)


class UDPTimeout(Duration):
    """A Duration, or a bare number of seconds (old spelling)."""


class Prefix:
    """An address with a prefix length; the host bits are kept (``192.168.8.1/24`` names a host in its network). A
    bare address is a prefix of full length."""

    __slots__ = ("ip", "length")

    def __init__(self, ip: IPv4Address | IPv6Address, length: int) -> None:
        self.ip = ip
        self.length = length

    @classmethod
    def parse(cls, text: str) -> Prefix:
        host, slash, length = text.partition("/")
        try:
            ip = ip_address(host)
            bits = int(length) if slash and length.isascii() and length.isdigit() else ip.max_prefixlen
            if slash and (not length.isdigit() or bits > ip.max_prefixlen):
                raise ValueError
        except ValueError:
            raise ValueError(f'"{text}" is not an IP prefix; write for example "192.0.2.0/24"') from None
        return cls(ip, bits)

    @property
    def network(self) -> IPv4Network | IPv6Network:
        return ip_network((self.ip, self.length), strict=False)

    def __str__(self) -> str:
        return f"{self.ip}/{self.length}"

    def __repr__(self) -> str:
        return f"Prefix({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and (self.ip, self.length) == (other.ip, other.length)

    def __hash__(self) -> int:
        return hash((self.ip, self.length))


class Prefixes(tuple[Prefix, ...]):
    """A "listable" field of prefixes: one alone, or a list."""

    __slots__ = ()


class FwMark(int):
    """A firewall mark: a number, or text such as "0x10"."""


def as_list(value: list[T] | T | None) -> list[T]:
    """A "listable" field as a list: one value stands for a list of one."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def dec_hook(kind: type, value: Any) -> Any:
    """For ``msgspec.convert(..., dec_hook=dec_hook)``. Raises ValueError with what to write instead."""
    if kind is Duration:
        if isinstance(value, str):
            return Duration.parse(value)
        raise ValueError('a duration is text with a unit, for example "300ms" or "30s"')
    if kind is UDPTimeout:
        if isinstance(value, int) and not isinstance(value, bool):
            return UDPTimeout(value)
        if isinstance(value, str):
            return UDPTimeout(Duration.parse(value))
        raise ValueError('a duration is text with a unit, for example "5m"')
    if kind is Prefix:
        if isinstance(value, str):
            return Prefix.parse(value)
        raise ValueError('a prefix is text, for example "192.0.2.0/24"')
    if kind is Prefixes:
        return Prefixes(dec_hook(Prefix, text) for text in as_list(value))
    if kind is FwMark:
        return _mark(value)
    if kind is IPv4Address | IPv6Address or kind in (IPv4Address, IPv6Address):
        return ip_address(value)
    raise NotImplementedError(kind)


def _mark(value: Any) -> FwMark:
    try:
        number = int(value, 0) if isinstance(value, str) else value
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 32:
            raise ValueError
    except ValueError:
        raise ValueError('a mark is a number from 0 to 4294967295 or text such as "0x10"') from None
    return FwMark(number)


def enc_hook(value: Any) -> Any:
    """For ``msgspec.to_builtins(..., enc_hook=enc_hook)``: the canonical spelling."""
    if isinstance(value, Duration):
        return format_duration(value)
    if isinstance(value, Prefix | IPv4Address | IPv6Address):
        return str(value)
    if isinstance(value, Prefixes):
        return [str(prefix) for prefix in value]
    if isinstance(value, FwMark):
        return int(value)
    raise NotImplementedError(type(value))


def format_duration(seconds: float) -> str:
    """As Go prints a duration: "1h30m0s", "300ms"."""
    if seconds == 0:
        return "0s"
    sign, rest = ("-", -seconds) if seconds < 0 else ("", seconds)
    if rest < 1:
        for unit in ("ms", "us", "ns"):
            count = rest / _UNITS[unit]
            if count >= 1:
                return f"{sign}{count:.6g}{unit}"
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    text = f"{int(hours)}h{int(minutes)}m" if hours else f"{int(minutes)}m" if minutes else ""
    return f"{sign}{text}{rest:.6g}s"
