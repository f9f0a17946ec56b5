"""DNS server ``dhcp``: the name servers that the uplink's lease (or its static configuration) names, as they change."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.config.shared import DialerOptions
from gateway.core.address import IP, Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError, PeerError
from gateway.dns import message
from gateway.dns.server.udp import Upstream

PORT = 53


class Options(DialerOptions, kw_only=True):
    """``interface`` "" or "auto": the elected uplink."""

    interface: str = ""


class Server:
    """Asks the servers in their order until one answers; SERVFAIL while the uplink has none."""

    def __init__(self, tag: str, options: Options, wiring: Wiring) -> None:
        self.tag = tag
        self._wiring = wiring
        self._interface = "" if options.interface == "auto" else options.interface
        if self._interface and not options.bind_interface:
            options = msgspec.structs.replace(options, bind_interface=self._interface)
        self._pool = Pool(options, wiring)

    async def exchange(self, query: bytes) -> bytes:
        """Raises DialError, PeerError or OSError of the last server."""
        return await self._pool.exchange(query, self._wiring.leases.servers(self._interface))

    async def close(self) -> None:
        self._pool.close()


class Pool:
    """Upstreams by address, kept while they are named."""

    def __init__(self, options: DialerOptions, wiring: Wiring) -> None:
        self._options = options
        self._wiring = wiring
        self._upstreams: dict[IP, Upstream] = {}

    async def exchange(self, query: bytes, servers: Sequence[IP]) -> bytes:
        """Raises what the last one of ``servers`` raised."""
        for gone in self._upstreams.keys() - set(servers):
            self._upstreams.pop(gone).close()
        failure: Exception | None = None
        refused = message.reply(query, message.SERVFAIL)
        for ip in servers:
            upstream = self._upstreams.get(ip)
            if upstream is None:
                upstream = self._upstreams[ip] = Upstream(Address(ip, PORT), self._options, self._wiring)
            try:
                answer = await upstream.exchange(query)
            except (DialError, PeerError, OSError) as error:
                failure = error
                continue
            if message.rcode(answer) not in (message.SERVFAIL, message.REFUSED):
                return answer
            refused, failure = answer, None
        if failure is not None:
            raise failure
        return refused

    def close(self) -> None:
        for upstream in self._upstreams.values():
            upstream.close()
        self._upstreams.clear()
