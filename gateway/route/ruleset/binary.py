"""Rule sets in binary form (``.srs`` versions 1 to 3). Pure.

``53 52 53`` ("SRS"), a version byte, then one zlib stream of rules; the layout of a rule is in ``_default``. Counts are
checked against what is left before anything is allocated, and the stream may not grow over ``LARGEST``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from gateway.core.errors import PeerError
from gateway.core.wire import Reader
from gateway.route.item.adguard_domain import AdGuardDomain
from gateway.route.item.base import Item
from gateway.route.item.domain import Domain
from gateway.route.item.domain_keyword import DomainKeyword
from gateway.route.item.domain_regex import DomainRegex
from gateway.route.item.domain_suffix import DomainSuffix
from gateway.route.item.ip_cidr import IPCIDR
from gateway.route.item.ipset import IPSet, Range
from gateway.route.item.network import Network
from gateway.route.item.port import Port
from gateway.route.item.port_range import PortRange
from gateway.route.item.process_name import ProcessName
from gateway.route.item.process_path import ProcessPath
from gateway.route.item.process_path_regex import ProcessPathRegex
from gateway.route.item.source_ip_cidr import SourceIPCIDR
from gateway.route.item.source_port import SourcePort
from gateway.route.item.source_port_range import SourcePortRange
from gateway.route.match import Default, Logical, Rule
from gateway.route.ruleset.succinct import read_set

MAGIC = b"SRS"
NEWEST = 3
LARGEST = 64 << 20
"""Bytes that a rule set may unpack to."""
DEEPEST = 16
"""Nesting of logical rules."""
NOT_BUILT = {
    13: "package_name", 14: "wifi_ssid", 15: "wifi_bssid", 18: "network_type", 19: "network_is_expensive",
    20: "network_is_constrained",
}  # fmt: skip


def read(data: bytes) -> tuple[Rule, ...]:
    """The rules of a ``.srs`` file. Raises PeerError with one sentence on a file that is cut, corrupt or too new."""
    if data[:3] != MAGIC:
        raise PeerError("not a binary rule set (it does not begin with SRS)")
    if len(data) < 4:
        raise PeerError("the file is cut short")
    if not 1 <= data[3] <= NEWEST:
        raise PeerError(f"rule set version {data[3]} is not supported; newest is {NEWEST}")
    reader = Reader(_inflate(data[4:]))
    try:
        count = reader.uvarint()
        if count > reader.left:
            raise PeerError(f"{count} rules in {reader.left} bytes")
        return tuple(_rule(reader, 0) for _ in range(count))
    except ValueError as error:
        raise PeerError(str(error)) from None


def _inflate(packed: bytes) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(packed, LARGEST)
    except zlib.error as error:
        raise PeerError(f"the file is corrupt ({error})") from None
    if stream.unconsumed_tail:
        raise PeerError(f"the file unpacks to more than {LARGEST >> 20} MiB")
    if not stream.eof:
        raise PeerError("the file is cut short")
    return plain


def _rule(reader: Reader, depth: int) -> Rule:
    kind = reader.u8()
    if kind == 0:
        return _default(reader)
    if kind != 1:
        raise PeerError(f"unknown rule type {kind}")
    if depth == DEEPEST:
        raise PeerError(f"logical rules nest deeper than {DEEPEST}")
    mode = reader.u8()
    if mode > 1:
        raise PeerError(f"unknown mode {mode} of a logical rule")
    count = reader.uvarint()
    if not 0 < count <= reader.left:
        raise PeerError(f"{count} rules in {reader.left} bytes")
    rules = [_rule(reader, depth + 1) for _ in range(count)]
    return Logical("or" if mode else "and", rules, invert=bool(reader.u8()))


def _default(reader: Reader) -> Default:
    """Items (number, payload) up to 0xFF, then the invert byte."""
    items: list[Item] = []
    while (number := reader.u8()) != 0xFF:
        if number in NOT_BUILT:
            raise PeerError(f'it uses "{NOT_BUILT[number]}", which exists in sing-box 1.12.12 but is not built yet')
        if number not in _ITEMS:
            raise PeerError(f"unknown item {number}")
        items += _ITEMS[number](reader)
    return Default(items, invert=bool(reader.u8()))


def _texts(reader: Reader) -> list[str]:
    count = reader.uvarint()
    if count > reader.left:
        raise PeerError(f"{count} texts in {reader.left} bytes")
    return [reader.take(reader.uvarint()).decode("utf-8", "replace") for _ in range(count)]


def _numbers(reader: Reader) -> list[int]:
    count = reader.uvarint()
    if count * 2 > reader.left:
        raise PeerError(f"{count} numbers in {reader.left} bytes")
    return [reader.u16() for _ in range(count)]


def _query_type(reader: Reader) -> list[Item]:
    _numbers(reader)  # read and not evaluated, as sing-box 1.12.12 does
    return []


def _domains(reader: Reader) -> list[Item]:
    exact, suffixes = set(), set()
    for key in read_set(reader):
        if key[:1] in ("\r", "\n"):
            suffixes.add(key[1:])
        else:
            exact.add(key)
    # version 1 writes the suffix "x.y" as the name x.y and the suffix ".x.y"
    whole = {name for name in exact if f".{name}" in suffixes}
    suffixes = {suffix for suffix in suffixes if suffix[1:] not in whole} | whole
    exact -= whole
    out: list[Item] = []
    if exact:
        out.append(Domain(frozenset(exact)))
    if suffixes:
        out.append(DomainSuffix(frozenset(suffixes)))
    return out


def _addresses(reader: Reader) -> IPSet:
    if reader.u8() != 1:
        raise PeerError("unknown version of an address set")
    count = reader.u64()
    if count * 10 > reader.left:
        raise PeerError(f"{count} address ranges in {reader.left} bytes")
    ranges: dict[int, list[Range]] = {4: [], 16: []}
    for _ in range(count):
        first, last = reader.take(reader.uvarint()), reader.take(reader.uvarint())
        if len(first) != len(last) or len(first) not in ranges or first > last:
            raise PeerError("a broken address range")
        ranges[len(first)].append((int.from_bytes(first, "big"), int.from_bytes(last, "big")))
    return IPSet(ranges[4], ranges[16])


_ITEMS: dict[int, Callable[[Reader], list[Item]]] = {
    0: _query_type,
    1: lambda reader: [Network.parse(_texts(reader))],
    2: _domains,
    3: lambda reader: [DomainKeyword.parse(_texts(reader))],
    4: lambda reader: [DomainRegex.parse(_texts(reader))],
    5: lambda reader: [SourceIPCIDR(_addresses(reader))],
    6: lambda reader: [IPCIDR(_addresses(reader))],
    7: lambda reader: [SourcePort.parse(_numbers(reader))],
    8: lambda reader: [SourcePortRange.parse(_texts(reader))],
    9: lambda reader: [Port.parse(_numbers(reader))],
    10: lambda reader: [PortRange.parse(_texts(reader))],
    11: lambda reader: [ProcessName.parse(_texts(reader))],
    12: lambda reader: [ProcessPath.parse(_texts(reader))],
    16: lambda reader: [AdGuardDomain(frozenset(read_set(reader)))],
    17: lambda reader: [ProcessPathRegex.parse(_texts(reader))],
}
