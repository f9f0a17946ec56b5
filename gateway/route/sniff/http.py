"""HTTP/1: the host of a request, from an absolute target or the Host field (RFC 9112 section 3.2). Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from gateway.route.sniff.verdict import NEED_MORE, More, Sniffed, domain_of

_LINE = 8192
_AUTHORITY = 260
"""A name of 253 bytes, its final dot, a colon and a port."""
# The longest method of the IANA registry has 17 characters (UPDATEREDIRECTREF).
_BEGIN = re.compile(rb"(?:[A-Z][A-Z_-]{0,23}(?: .*)?)?")
_FIRST = re.compile(rb"([A-Z][A-Z_-]{0,23}) (\S+) HTTP/([12])\.[0-9]\r?")
# The first Host field, never a later one. Each byte can be read in one way only, so that no client can make it slow.
_HOST = re.compile(rb"(?:(?![Hh][Oo][Ss][Tt]:)[^\r\n:]+:[^\n]*\n)*[Hh][Oo][Ss][Tt]:([^\r\n]*)\r?\n")
_PORT = re.compile(rb":[0-9]*$")
_URL = re.compile(rb"[Hh][Tt][Tt][Pp]s?://(?:[^/?#@]*@)?([^/?#]*)")


def sniff(data: bytes) -> Sniffed | More | None:
    end = data.find(b"\n")
    if end < 0:
        return NEED_MORE if len(data) <= _LINE and _BEGIN.fullmatch(data) else None
    first = _FIRST.fullmatch(data, 0, end)
    if first is None:
        return None
    if first[3] == b"2":
        return Sniffed("http")  # connection preface of HTTP/2: its names are compressed
    target = first[2]
    if not target.startswith(b"/"):
        url = _URL.match(target)
        if url:
            return Sniffed("http", _host(url[1]))
        if first[1] == b"CONNECT":
            return Sniffed("http", _host(target))
    # The ordinary case at once; what is cut short or no header goes the long way.
    host = _HOST.match(data, end + 1)
    return Sniffed("http", _host(host[1].strip(b" \t"))) if host else _field(data, end + 1)


def _field(data: bytes, pos: int) -> Sniffed | More | None:
    while True:
        end = data.find(b"\n", pos)
        if end < 0:
            return NEED_MORE
        line = data[pos:end].rstrip(b"\r")
        if not line:
            return Sniffed("http")
        name, colon, value = line.partition(b":")
        if not colon:
            return None
        if name.lower() == b"host":
            return Sniffed("http", _host(value.strip(b" \t")))
        pos = end + 1


def _host(authority: bytes) -> str:
    return _name(authority) if len(authority) <= _AUTHORITY else ""


@lru_cache(1024)
def _name(authority: bytes) -> str:
    return domain_of(_PORT.sub(b"", authority))
