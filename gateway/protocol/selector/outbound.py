"""Flows leave through the chosen member. The choice is stored, and of the next start too, where there is a store."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.address import Address
from gateway.core.contracts import Begun, Wiring, begins
from gateway.core.contracts import Outbound as Member
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.selector.options import OutboundOptions

CHOICES = "selected"
"""Kind of the store's entries: group to member."""


class Outbound:
    """See ``core.contracts.Chooses``."""

    type = "selector"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.members = tuple(options.outbounds)
        self._now = self._stored(wiring) or options.default or self.members[0]
        self._interrupt = options.interrupt_exist_connections
        self._wiring = wiring
        self._watchers: list[Callable[[], None]] = []

    def _stored(self, wiring: Wiring) -> str:
        """The last choice, unless it is a member no more."""
        found = b"" if wiring.store is None else wiring.store.get(CHOICES, self.tag) or b""
        tag = found.decode("utf-8", "replace")
        return tag if tag in self.members else ""

    @property
    def now(self) -> str:
        return self._now

    def chosen(self, network: Network) -> str:
        return self._now

    @property
    def networks(self) -> frozenset[Network]:
        return self._member().networks

    def _member(self) -> Member:
        return self._wiring.outbounds[self._now]

    def select(self, tag: str) -> None:
        """Use member ``tag`` from now on. Raises KeyError where it is none."""
        if tag not in self.members:
            raise KeyError(tag)
        if tag == self._now:
            return
        self._now = tag
        if self._wiring.store is not None:
            self._wiring.store.put(CHOICES, self.tag, tag.encode())
        if self._interrupt:
            self._wiring.router.close_flows(lambda running: self.tag in running.chain)
        for changed in tuple(self._watchers):
            changed()

    def watch(self, changed: Callable[[], None]) -> None:
        self._watchers.append(changed)

    def begin(self, destination: Address, speaking: bool) -> Begun | None:
        member = self._member()
        return member.begin(destination, speaking) if begins(member) else None

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        return await self._member().connect(flow, destination)

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        return await self._member().open_packets(flow, destination)

    async def close(self) -> None:
        """The members are closed by whoever made them."""
