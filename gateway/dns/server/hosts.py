"""DNS server ``hosts``: addresses from files in the form of hosts(5) and from the configuration itself."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import msgspec

from gateway.config.fields import as_list
from gateway.config.shared import Options as Strict
from gateway.core.address import IP
from gateway.core.contracts import Wiring
from gateway.dns import message

TTL = 600
CHECK = 5.0
"""Seconds between two looks whether a file has changed."""
LARGEST = 64 << 20
DEFAULT = "/etc/hosts"


class Options(Strict, kw_only=True):
    """``path`` empty: /etc/hosts. Relative paths start at the working folder."""

    path: str | list[str] = msgspec.field(default_factory=list)
    predefined: dict[str, str | list[str]] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for found in self.predefined.values():
            for text in as_list(found):
                ip_address(text)


class Server:
    """Known names answer A and AAAA, other types empty; unknown names NXDOMAIN."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._predefined = {
            name.rstrip(".").lower(): tuple(ip_address(text) for text in as_list(found))
            for name, found in options.predefined.items()
        }
        self._files = [File(Path(text)) for text in as_list(options.path) or [DEFAULT]]

    async def exchange(self, query: bytes) -> bytes:
        """Raises PeerError for a query without exactly one question."""
        asked = message.question(query)
        found = self._predefined.get(asked.name)
        if found is None:
            found = find(self._files, asked.name)
        return answer(query, asked, found) if found else message.reply(query, message.NXDOMAIN)

    async def close(self) -> None:
        """Nothing to release."""


def find(files: list[File], name: str) -> tuple[IP, ...]:
    """Of the first file that has ``name``."""
    for file in files:
        if found := file.find(name):
            return found
    return ()


def answer(query: bytes, asked: message.Question, found: tuple[IP, ...]) -> bytes:
    """The records of ``found`` that the question's type asks for; none is an empty answer."""
    version = {message.A: 4, message.AAAA: 6}.get(asked.type)
    data = [(asked.type, ip.packed) for ip in found if ip.version == version]
    return message.reply(query, message.NOERROR, data, TTL)


class File:
    """One file, read again when its time or size changed; a file that cannot be read is empty."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, tuple[IP, ...]] = {}
        self._state: tuple[int, int] | None = None
        self._checked = float("-inf")

    def find(self, name: str) -> tuple[IP, ...]:
        now = time.monotonic()
        if now - self._checked >= CHECK:
            self._checked = now
            self._refresh()
        return self._names.get(name, ())

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
            state = (stat.st_mtime_ns, stat.st_size)
            if state == self._state:
                return
            self._state = state
            self._names = parse(self._path.read_text(errors="replace")) if stat.st_size <= LARGEST else {}
        except OSError:
            self._state, self._names = None, {}


def parse(text: str) -> dict[str, tuple[IP, ...]]:
    """Name to addresses; lines that are no hosts(5) lines are left out."""
    found: dict[str, dict[IPv4Address | IPv6Address, None]] = {}
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        try:
            ip = ip_address(words[0].partition("%")[0]) if words else None
        except ValueError:
            continue
        for name in words[1:] if ip is not None else ():
            found.setdefault(name.rstrip(".").lower(), {})[ip] = None  # type: ignore[index]
    return {name: tuple(ips) for name, ips in found.items()}
