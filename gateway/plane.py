"""The userspace part of a gateway: inbounds, rules, outbounds. Without a ``gateway`` object it is all there is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, cast

from gateway import catalog
from gateway.config.root import Config, Tagged
from gateway.core.address import IP
from gateway.core.contracts import (
    Inbound,
    Leases,
    Outbound,
    Owners,
    Store,
    Wiring,
    chooses,
    probes,
)
from gateway.core.contracts import (
    Router as RouterContract,
)
from gateway.core.errors import ConfigError, GatewayError
from gateway.core.flow import Flow
from gateway.dns.fake import FakeAddresses
from gateway.dns.rejected import Rejections
from gateway.dns.router import Router as DNSRouter
from gateway.kernel.edge import Edge
from gateway.kernel.neighbour import Neighbours
from gateway.kernel.owner import SocketOwners
from gateway.protocol.direct.options import OutboundOptions as DirectOptions
from gateway.route.engine import Engine
from gateway.route.match import Sets
from gateway.route.options import RouteConfig
from gateway.route.router import Router
from gateway.route.ruleset.load import Copies, load_all, no_copies
from gateway.uplink.leases import PLACES, LeaseFiles

DIRECT = "direct"


class Outbounds:
    """See ``core.contracts.Outbounds``. A configuration without outbounds has one, ``direct``. ``kept``: those that
    stay as they are."""

    def __init__(
        self, items: tuple[Tagged, ...], final: str, wiring: Wiring, kept: Mapping[str, Outbound] | None = None
    ) -> None:  # fmt: skip
        kept = kept or {}
        items = items or (Tagged(DIRECT, DIRECT, DirectOptions(), ""),)
        self._all: dict[str, Outbound] = {
            item.tag: kept.get(item.tag) or made("outbound", item, wiring) for item in items
        }
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

    def chosen(self, tag: str) -> frozenset[str]:
        """The members that group ``tag`` uses, one for both networks or one for each; none where it is no group."""
        group = self._all[tag]
        if not hasattr(group, "chosen"):
            return frozenset()
        return frozenset(member for network in ("tcp", "udp") if (member := group.chosen(network)))

    @property
    def default(self) -> str:
        return self._default

    async def close(self, but: Iterable[Outbound] = ()) -> None:
        stay = list(but)
        for outbound in self._all.values():
            if outbound not in stay:
                await outbound.close()


def made(kind: str, item: Tagged, wiring: Wiring) -> Any:
    """The object of one tagged entry. Raises ConfigError where a file that it names cannot be used."""
    try:
        return catalog.runtime(kind, item.type)(item.tag, item.options, wiring)
    except ConfigError as error:
        error.path = f"{item.path}.{error.path}"
        raise


class NoLeases:
    """Where no uplink is ours."""

    def servers(self, interface: str = "") -> tuple[IP, ...]:
        return ()

    def search(self, interface: str = "") -> tuple[str, ...]:
        return ()

    def watch(self, changed: Callable[[], None]) -> None:
        """Nothing will change."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What one configuration comes to; a reload makes another and keeps what did not change."""

    config: Config
    route: RouteConfig
    outbounds: Outbounds
    engine: Engine
    resolver: DNSRouter
    fakes: FakeAddresses | None
    inbounds: dict[str, Inbound]


class Plane:
    """``mark``: SO_MARK of every socket of ours, 0 where nothing is steered; ``record``, ``steers`` and ``store``: see
    ``Wiring``; ``lease_file``: where our dnsmasq writes the leases of the LANs; ``copies`` of remote rule sets. Build
    it in the running loop. Raises ConfigError for a rule set that cannot be read and for an outbound that a rule names
    and nobody has."""

    def __init__(
        self, config: Config, leases: Leases, mark: int = 0,
        record: Callable[[dict[str, Any]], None] | None = None, steers: bool = False, lease_file: Path | None = None,
        store: Store | None = None, copies: Copies = no_copies,
    ) -> None:  # fmt: skip
        self.edge = Edge(asyncio.get_running_loop())
        unset = cast(Any, None)
        self.wiring = Wiring(
            self.edge, unset, unset, unset, leases, unset, mark, record=record, steers=steers,
            directory=config.directory, store=store,
        )  # fmt: skip
        self.owners: SocketOwners = SocketOwners()
        self.wiring.owners = cast(Owners, self.owners)
        self._lease_file = lease_file
        self.leases = LeaseFiles()
        self.devices = self.wiring.devices = Neighbours(self.leases)
        self._copies = copies
        kept = getattr(config.experimental, "cache_file", None)
        if store is not None and kept is not None and kept.store_rdrc:
            self.wiring.rejections = Rejections(store, kept.rdrc_timeout)
        route: RouteConfig = config.route or RouteConfig()
        self.parts = self._build(config, route, load_all(route, config.directory, copies))
        self.router = Router(self.parts.engine, self.wiring)
        self.wiring.router = cast(RouterContract, self.router)
        self.made: list[Inbound] = []
        """Inbounds that no configuration names."""
        self._listening: list[Inbound] = []
        self._started = False
        self._checks: set[asyncio.Task[None]] = set()
        self.use(self.parts)
        leases.watch(self._network_changed)

    @property
    def outbounds(self) -> Outbounds:
        return self.parts.outbounds

    @property
    def resolver(self) -> DNSRouter:
        return self.parts.resolver

    @property
    def inbounds(self) -> list[Inbound]:
        return [*self.parts.inbounds.values(), *self.made]

    def _build(self, config: Config, route: RouteConfig, sets: Sets, old: Parts | None = None) -> Parts:
        """Nothing of it works yet. Raises ConfigError."""
        before: Mapping[str, Tagged] = {} if old is None else {item.tag: item for item in old.config.outbounds}
        kept = {} if old is None else {
            item.tag: old.outbounds[item.tag] for item in config.outbounds if same(item, before.get(item.tag))
        }  # fmt: skip
        outbounds = Outbounds(config.outbounds, route.final, self.wiring, kept)
        for rule in route.rules:
            tag = getattr(rule.action, "outbound", "")
            if tag and tag not in outbounds:
                raise ConfigError(f'no outbound has the tag "{tag}"', f"{rule.path}.outbound")
        engine = Engine(route.rules, outbounds.default, sets)
        fakes = self._fakes(config, None if old is None else old.fakes)
        if old is not None and unchanged_dns(config, old.config):
            resolver = old.resolver
        else:
            servers = {item.tag: made("dns", item, self.wiring) for item in config.dns_servers}
            resolver = DNSRouter(config.dns, servers, self.wiring, sets)
        there = {} if old is None else {item.tag: item for item in old.config.inbounds}
        inbounds: dict[str, Inbound] = {
            item.tag: old.inbounds[item.tag]
            if old and same(item, there.get(item.tag))
            else made("inbound", item, self.wiring)
            for item in config.inbounds
        }
        return Parts(config, route, outbounds, engine, resolver, fakes, inbounds)

    def _fakes(self, config: Config, old: FakeAddresses | None) -> FakeAddresses | None:
        """What is known of fake addresses goes on as long as their ranges do."""
        found = [item.options.networks for item in config.dns_servers if item.type == "fakeip"]
        if not found or (old is not None and old.networks == found[0]):
            return old if found else None
        wanted = config.experimental is not None and config.experimental.cache_file.store_fakeip
        return FakeAddresses(found[0], self.wiring.store if wanted else None)

    async def prepare(self, config: Config) -> Parts:
        """What ``config`` comes to, beside what stands. Raises ConfigError."""
        route: RouteConfig = config.route or RouteConfig()
        sets = await asyncio.to_thread(load_all, route, config.directory, self._copies)
        return self._build(config, route, sets, self.parts)

    async def listen(self, parts: Parts) -> None:
        """Close the inbounds that ``parts`` has not, open those that it has new, with the rule sets of ``parts``.
        Raises OSError where a port is taken; what listened listens again then; KernelError likewise, and whatever
        else."""
        before, wanted = self._listening, list(parts.inbounds.values())
        gone = [inbound for inbound in before if inbound not in wanted]
        for inbound in gone:
            await inbound.close()
        sets, self.wiring.sets = self.wiring.sets, parts.engine.sets
        try:
            await start([inbound for inbound in wanted if inbound not in before])
        except Exception:
            self.wiring.sets = sets
            # Where that fails too, the next try finds them not listening.
            self._listening = [inbound for inbound in before if inbound in wanted]
            await start(gone)
            self._listening = before
            raise
        self._listening = wanted
        tags = {inbound.tag for inbound in gone}
        # Their answers would leave through a socket that is closed; what a tun takes comes by its table alone.
        self.router.close_flows(
            lambda running: (
                running.flow.inbound in tags and (running.flow.network == "udp" or running.flow.inbound_type == "tun")
            )
        )

    def use(self, parts: Parts) -> None:
        """From now on flows are judged and carried by ``parts``. Never waits, never fails."""
        if parts.resolver is not self.resolver:
            parts.resolver.succeed(self.resolver)
        self.parts = parts
        self.wiring.route, self.wiring.outbounds, self.wiring.resolver = parts.route, parts.outbounds, parts.resolver
        self.wiring.sets, self.wiring.fakes = parts.engine.sets, parts.fakes
        self.router.engine = parts.engine
        self.router.find_neighbor = parts.route.find_neighbor
        self.leases.use(*lease_files(parts, self._lease_file), lease_lengths(parts.config))
        for inbound in parts.inbounds.values():
            if hasattr(inbound, "follow"):
                inbound.follow()
        self._begin()
        for item in parts.config.inbounds:
            self.router.sessions.set_timeout(item.tag, item.options.udp_timeout)

    async def leave(self, old: Parts) -> list[Flow]:
        """After ``use`` of others: end the flows that would not go as they go, and close what nobody uses any more."""
        now = self.parts
        tags = [item.tag for item in old.config.outbounds]
        changed = {tag for tag in tags if tag not in now.outbounds or now.outbounds[tag] is not old.outbounds[tag]}
        ended = self.router.reconsider(changed)
        for tag in changed:
            self.wiring.delays.forget(tag)
        self._check_groups()
        await old.outbounds.close(but=[now.outbounds[tag] for tag in now.outbounds])
        if old.resolver is not now.resolver:
            await old.resolver.close()
        return ended

    async def start(self) -> None:
        """Bind every inbound. Raises OSError, KernelError; none listens then."""
        await start(self.inbounds)
        self._listening = list(self.parts.inbounds.values())
        self._started = True
        self._begin()

    def _begin(self) -> None:
        """Groups that probe begin as soon as flows may come."""
        for tag in self.outbounds if self._started else ():
            if probes(group := self.outbounds[tag]):
                group.start()

    def _network_changed(self) -> None:
        """What probes have found may be true no more."""
        self._check_groups(force=True)

    def _check_groups(self, force: bool = False) -> None:
        for tag in self.outbounds if self._started else ():
            if probes(group := self.outbounds[tag]):
                task = self.edge.loop.create_task(group.check(force))
                self._checks.add(task)
                task.add_done_callback(self._checks.discard)

    async def stop(self) -> None:
        """Stop listening and end every flow."""
        self._started = False
        for task in tuple(self._checks):
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        for inbound in self.inbounds:
            await inbound.close()
        await self.router.close()
        await self.resolver.close()
        await self.outbounds.close()
        self.owners.close()
        self.devices.close()
        self.edge.close()

    def status(self) -> dict[str, Any]:
        """Its part of what ``gateway status`` shows."""
        stored = {} if self.wiring.store is None else {"store": self.wiring.store.problem}
        inbounds = [f"{item.type}/{item.tag}" for item in self.inbounds]
        return {"inbounds": inbounds, "flows": len(self.router.flows()), **stored}

    def groups(self) -> list[dict[str, Any]]:
        """Of each group its ``members`` (``tag``, ``type``, ``delay`` in milliseconds of the last probe and its ``age``
        in seconds, None for none) and the one in use, ``now``; ``udp``: the one for UDP, where there may be another;
        ``chosen``: by a person."""
        found = []
        for tag in self.outbounds:
            group = self.outbounds[tag]
            if members := getattr(group, "members", ()):
                found.append({
                    "tag": tag, "type": group.type, "now": getattr(group, "now", ""), "chosen": chooses(group),
                    "udp": group.chosen("udp") if probes(group) else "",
                    "members": [self._member(member) for member in members],
                })  # fmt: skip
        return found

    def _member(self, tag: str) -> dict[str, Any]:
        found = self.wiring.delays.get(self.outbounds.leaf(tag).tag)
        delay, age = (None, None) if found is None else (found.milliseconds, round(max(time.time() - found.at, 0.0)))
        return {"tag": tag, "type": self.outbounds[tag].type, "delay": delay, "age": age}

    async def check(self, tag: str) -> dict[str, Any]:
        """Let group ``tag`` probe its members now; the group, as ``groups`` has it. Raises GatewayError."""
        if tag not in self.outbounds or not probes(group := self.outbounds[tag]):
            groups = [tag for tag in self.outbounds if probes(self.outbounds[tag])]
            raise GatewayError(f'"{tag}" is no urltest; there are: {", ".join(groups) or "none"}')
        await group.check(force=True)
        return next(one for one in self.groups() if one["tag"] == tag)

    def select(self, tag: str, member: str) -> None:
        """Let group ``tag`` use ``member`` from now on. Raises GatewayError."""
        if tag not in self.outbounds or not chooses(group := self.outbounds[tag]):
            groups = [one["tag"] for one in self.groups() if one["chosen"]]
            raise GatewayError(f'"{tag}" is no selector; selectors: {", ".join(groups) or "none"}')
        try:
            group.select(member)
        except KeyError:
            raise GatewayError(f'"{member}" is no member of {tag}; members: {", ".join(group.members)}') from None


def lease_files(parts: Parts, own: Path | None) -> tuple[list[Path], dict[str, str]]:
    """Where leases stand, ``own`` (that of our dnsmasq) last, and the names that the configuration gives to hardware
    addresses. Without ``dhcp_lease_files`` the files of other DHCP servers are looked for where they usually are."""
    config = parts.config
    named = [config.directory / name for name in parts.route.dhcp_lease_files]
    files = [*(named or map(Path, PLACES)), *([own] if own is not None else [])]
    lans = () if config.gateway is None else config.gateway.lans
    hosts = [host for lan in lans if lan.dhcp_server is not None for host in lan.dhcp_server.hosts]
    return files, {host.mac.lower(): host.name.lower() for host in hosts if host.name}


def lease_lengths(config: Config) -> dict[IPv4Network | IPv6Network, int]:
    """Seconds that the leases of our LANs last, by network."""
    lans = () if config.gateway is None else config.gateway.lans
    return {lan.network: int(lan.dhcp_server.lease) for lan in lans if lan.dhcp_server is not None and lan.network}


async def start(inbounds: Sequence[Inbound]) -> None:
    """All or none. Raises OSError, KernelError."""
    started: list[Inbound] = []
    try:
        for inbound in inbounds:
            try:
                await inbound.start()
            except OSError as error:
                raise OSError(error.errno, f"inbound {inbound.tag}: {error.strerror or error}") from error
            started.append(inbound)
    except BaseException:
        for inbound in started:
            await inbound.close()
        raise


def same(item: Tagged, other: Tagged | None) -> bool:
    """Whether two entries mean the same: one that changed is made anew."""
    return other is not None and (item.type, item.value) == (other.type, other.value)


def unchanged_dns(config: Config, other: Config) -> bool:
    """Whether DNS may go on with its cache. Rule sets are read anew by each reload, so with them it may not."""
    dns = config.value.get("dns")
    return dns == other.value.get("dns") and '"rule_set"' not in json.dumps(dns)
