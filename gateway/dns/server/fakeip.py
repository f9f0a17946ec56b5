"""DNS server ``fakeip``: every name has an address at once, which stands for the name.

A flow to such an address is judged and dialled by the name; what the name really resolves to is asked by whoever dials,
never through this server.
"""

from __future__ import annotations

import asyncio
from ipaddress import ip_network

from gateway.config.fields import Prefix
from gateway.config.shared import Options as Strict
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError
from gateway.dns import message
from gateway.dns.fake import Network

TTL = 600
"""Seconds, as in sing-box."""
VERSIONS = {message.A: 4, message.AAAA: 6}


class Options(Strict, kw_only=True):
    """A family without a range has no addresses."""

    inet4_range: Prefix | None = None
    inet6_range: Prefix | None = None

    def __post_init__(self) -> None:
        for name, version in (("inet4_range", 4), ("inet6_range", 6)):
            prefix: Prefix | None = getattr(self, name)
            if prefix is None:
                continue
            if prefix.ip.version != version:
                raise ValueError(f'{name}: "{prefix}" is of the other family')
            if prefix.ip.max_prefixlen - prefix.length < 2:
                raise ValueError(f'{name}: "{prefix}" has no room; write for example {EXAMPLES[name]}')
        if self.inet4_range is None and self.inet6_range is None:
            raise ValueError(f"a fakeip server needs inet4_range or inet6_range, for example {EXAMPLES['inet4_range']}")

    @property
    def networks(self) -> tuple[Network, ...]:
        prefixes = (self.inet4_range, self.inet6_range)
        return tuple(ip_network((prefix.ip, prefix.length), strict=False) for prefix in prefixes if prefix is not None)


EXAMPLES = {"inet4_range": '"198.18.0.0/15"', "inet6_range": '"fc00::/18"'}


class Server:
    """A and AAAA are answered; other types, and a family without a range, empty (sing-box says nothing to those, and
    its clients wait)."""

    fake = True

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._wiring = wiring
        self._writing = asyncio.Lock()
        """What is given out later is written later."""

    async def exchange(self, query: bytes) -> bytes:
        """Raises PeerError for a query without exactly one question."""
        asked, fakes = message.question(query), self._wiring.fakes
        if fakes is None:
            raise DialError("no fake addresses", "resolve")
        version = VERSIONS.get(asked.type, 0)
        # A name with other bytes than a name has is nothing that a proxy could be told.
        if not version or asked.klass != message.IN or not asked.name or "\\" in asked.name:
            return message.reply(query, message.NOERROR)
        ip, entries = fakes.give(asked.name, version)
        if entries and fakes.store is not None:
            async with self._writing:
                await asyncio.to_thread(fakes.store.change, entries)
        data = [] if ip is None else [(asked.type, ip.packed)]
        return message.reply(query, message.NOERROR, data, TTL)

    async def close(self) -> None:
        """Nothing to release."""
