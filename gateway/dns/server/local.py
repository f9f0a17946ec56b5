"""DNS server ``local``: what this host itself would ask: /etc/hosts, then the servers of resolv.conf(5).

Names arrive fully qualified, so the search list does not apply.
"""

from __future__ import annotations

import time
from ipaddress import ip_address
from pathlib import Path

from gateway.config.shared import DialerOptions
from gateway.core.address import IP
from gateway.core.contracts import Wiring
from gateway.dns import message
from gateway.dns.server import hosts
from gateway.dns.server.dhcp import Pool

RESOLV_CONF = Path("/etc/resolv.conf")
CHECK = 5.0
SERVERS = 3
"""As the C library has it (MAXNS)."""


class Options(DialerOptions, kw_only=True):
    pass


class Server:
    """``exchange`` raises DialError, PeerError or OSError."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._pool = Pool(options, wiring)
        self._hosts = hosts.File(Path(hosts.DEFAULT))
        self._servers: tuple[IP, ...] = ()
        self._checked = float("-inf")

    async def exchange(self, query: bytes) -> bytes:
        asked = message.question(query)
        if asked.type in (message.A, message.AAAA) and (found := self._hosts.find(asked.name)):
            return hosts.answer(query, asked, found)
        now = time.monotonic()
        if now - self._checked >= CHECK:
            self._checked = now
            self._servers = read_servers(RESOLV_CONF)
        return await self._pool.exchange(query, self._servers)

    async def close(self) -> None:
        self._pool.close()


def read_servers(path: Path) -> tuple[IP, ...]:
    """The ``nameserver`` lines of ``path``; without any the host itself, as resolv.conf(5) says."""
    found: list[IP] = []
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found[:SERVERS]) or (ip_address("127.0.0.1"),)
