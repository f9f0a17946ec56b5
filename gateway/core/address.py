"""Where a flow goes: a host (IP address or domain name) and a port."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

IP = IPv4Address | IPv6Address


class _Hashed:
    """Hashed once. A short flow looks its addresses up nine times, and the standard library hashes in Python."""

    __slots__ = ()
    _hash: int

    def __init__(self, address: str) -> None:
        super().__init__(address)  # type: ignore[call-arg]
        self._hash = super().__hash__()  # type: ignore[misc]

    def __hash__(self) -> int:
        return self._hash


class _IPv4(_Hashed, IPv4Address):
    __slots__ = ("_hash",)


class _IPv6(_Hashed, IPv6Address):
    __slots__ = ("_hash",)


@lru_cache(4096)
def _parse(text: str) -> IP:
    """The same few devices and servers come again with every connection. Raises ValueError."""
    try:
        return _IPv4(text)
    except ValueError:
        return _IPv6(text)


class Address(NamedTuple):
    """One end of a flow.

    ``host`` is an ``IPv4Address``, an ``IPv6Address`` or a domain name (``str``, lower case, without a final dot);
    ``port`` is 0..65535. An IPv4-mapped IPv6 address never appears here: whoever reads one from a socket unmaps it
    (see ``of``).
    """

    host: IP | str
    port: int

    @classmethod
    def of(cls, host: str | IP, port: int) -> Address:
        """Build from text or an IP object: numeric text becomes an IP, ``::ffff:a.b.c.d`` becomes IPv4, a scope
        id (``%eth0``) is cut off, names are lower-cased."""
        if isinstance(host, str):
            name = host
            try:
                host = _parse(name.partition("%")[0])
            except ValueError:
                return cls(name.rstrip(".").lower(), port)
        if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
            host = host.ipv4_mapped
        return cls(host, port)

    @property
    def ip(self) -> IP | None:
        """The IP address, or None where the host is a name."""
        return None if isinstance(self.host, str) else self.host

    @property
    def domain(self) -> str | None:
        """The domain name, or None where the host is an address."""
        return self.host if isinstance(self.host, str) else None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if isinstance(self.host, IPv6Address) else f"{self.host}:{self.port}"
