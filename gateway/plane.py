"""The userspace part of a gateway: inbounds, rules, outbounds. Without a ``gateway`` object it is all there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from gateway import catalog
from gateway.config.root import Config, Tagged
from gateway.core.address import IP
from gateway.core.contracts import (
    Inbound,
    Leases,
    Outbound,
    Owners,
    Wiring,
)
from gateway.core.contracts import (
    Router as RouterContract,
)
from gateway.core.errors import ConfigError
from gateway.dns.router import Router as DNSRouter
from gateway.kernel.edge import Edge
from gateway.kernel.owner import SocketOwners
from gateway.protocol.direct.options import OutboundOptions as DirectOptions
from gateway.route.engine import Engine
from gateway.route.match import Rule
from gateway.route.options import RouteConfig
from gateway.route.router import Router
from gateway.route.ruleset.load import load_all

DIRECT = "direct"


class Outbounds:
    """See ``core.contracts.Outbounds``. A configuration without outbounds has one, ``direct``."""

    def __init__(self, items: tuple[Tagged, ...], final: str, wiring: Wiring) -> None:
        self._all: dict[str, Outbound] = {
            item.tag: catalog.runtime("outbound", item.type)(item.tag, item.options, wiring) for item in items
        }
        if not self._all:
            self._all[DIRECT] = catalog.runtime("outbound", DIRECT)(DIRECT, DirectOptions(), wiring)
        self._default = final or next(iter(self._all))

    def __getitem__(self, tag: str) -> Outbound:
        return self._all[tag]

    def __contains__(self, tag: object) -> bool:
        return tag in self._all

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def leaf(self, tag: str) -> Outbound:
        found = self._all[tag]
        while now := getattr(found, "now", ""):
            found = self._all[now]
        return found

    @property
    def default(self) -> str:
        return self._default

    async def close(self) -> None:
        for outbound in self._all.values():
            await outbound.close()


class NoLeases:
    """Where no uplink is ours."""

    def servers(self, interface: str = "") -> tuple[IP, ...]:
        return ()

    def search(self, interface: str = "") -> tuple[str, ...]:
        return ()

    def watch(self, changed: Callable[[], None]) -> None:
        """Nothing will change."""


class Plane:
    """``mark``: SO_MARK of every socket of ours, 0 where nothing is steered. Build it in the running loop. Raises
    ConfigError for a rule set that cannot be read and for an outbound that a rule names and nobody has."""

    def __init__(self, config: Config, leases: Leases, mark: int = 0) -> None:
        route: RouteConfig = config.route or RouteConfig()
        self.edge = Edge(asyncio.get_running_loop())
        unset = cast(Any, None)
        wiring = self.wiring = Wiring(self.edge, unset, unset, unset, leases, unset, mark, route)
        self.outbounds = Outbounds(config.outbounds, route.final, wiring)
        self.owners: SocketOwners = SocketOwners()
        sets = load_all(route, config.directory)
        servers = {
            item.tag: catalog.runtime("dns", item.type)(item.tag, item.options, wiring) for item in config.dns_servers
        }
        self.resolver = DNSRouter(config.dns, servers, wiring, sets)
        wiring.outbounds, wiring.resolver = self.outbounds, self.resolver
        wiring.owners = cast(Owners, self.owners)
        self.router = Router(self._engine(route, sets), wiring)
        wiring.router = cast(RouterContract, self.router)
        self.inbounds: list[Inbound] = [
            catalog.runtime("inbound", item.type)(item.tag, item.options, wiring) for item in config.inbounds
        ]
        for item in config.inbounds:
            self.router.sessions.set_timeout(item.tag, item.options.udp_timeout)

    def _engine(self, route: RouteConfig, sets: Mapping[str, Sequence[Rule]]) -> Engine:
        for rule in route.rules:
            tag = getattr(rule.action, "outbound", "")
            if tag and tag not in self.outbounds:
                raise ConfigError(f'no outbound has the tag "{tag}"', f"{rule.path}.outbound")
        return Engine(route.rules, self.outbounds.default, sets)

    async def start(self) -> None:
        """Bind every inbound. Raises OSError; none listens then."""
        started: list[Inbound] = []
        try:
            for inbound in self.inbounds:
                await inbound.start()
                started.append(inbound)
        except BaseException:
            for inbound in started:
                await inbound.close()
            raise

    async def stop(self) -> None:
        """Stop listening and end every flow."""
        for inbound in self.inbounds:
            await inbound.close()
        await self.router.close()
        await self.resolver.close()
        await self.outbounds.close()
        self.owners.close()
        self.edge.close()

    def status(self) -> dict[str, Any]:
        """Its part of what ``gateway status`` shows."""
        return {"inbounds": [f"{item.type}/{item.tag}" for item in self.inbounds], "flows": len(self.router.flows())}
