"""The SOCKS5 address format (RFC 1928 section 5), which Shadowsocks, Trojan and others carry too. Pure.

::

    +------+----------+----------+
    | ATYP |   host   |   port   |     ATYP 1: 4 bytes, IPv4     4: 16 bytes, IPv6
    +------+----------+----------+          3: one length byte and a name of 1..255 bytes
    |  1   | variable |    2     |
    +------+----------+----------+
"""

from __future__ import annotations

from ipaddress import IPv4Address

from gateway.core.address import Address
from gateway.core.errors import LocalError, PeerError
from gateway.core.wire import Reader, u16

IPV4, DOMAIN, IPV6 = 1, 3, 4
LONGEST = 1 + 1 + 255 + 2


def read(reader: Reader) -> Address:
    """One address. Raises Incomplete where bytes are missing, PeerError on another ATYP or a name that is none."""
    kind = reader.u8()
    if kind == IPV4:
        return Address.of(reader.ipv4(), reader.u16())
    if kind == IPV6:
        return Address.of(reader.ipv6(), reader.u16())
    if kind != DOMAIN:
        raise PeerError(f"address type {kind}")
    name = reader.take(reader.u8())
    return Address.of(text(name), reader.u16())


def text(name: bytes) -> str:
    """A host name as text. Raises PeerError where it is empty, has blanks or control bytes, or is not UTF-8."""
    try:
        found = name.decode()
    except UnicodeDecodeError:
        raise PeerError("host name is not text") from None
    if not found.strip(".") or any(char <= " " or char == "\x7f" for char in found):
        raise PeerError("host name is empty or has control characters")
    return found


def write(address: Address) -> bytes:
    """``address`` on the wire. Raises LocalError for a name over 255 bytes."""
    host = address.host
    if isinstance(host, str):
        name = host.encode()
        if not 0 < len(name) <= 255:
            raise LocalError("host name over 255 bytes")
        return bytes((DOMAIN, len(name))) + name + u16(address.port)
    return bytes((IPV4 if isinstance(host, IPv4Address) else IPV6,)) + host.packed + u16(address.port)
