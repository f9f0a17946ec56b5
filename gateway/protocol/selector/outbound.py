"""Flows leave through the chosen member."""

from __future__ import annotations

from collections.abc import Callable

from gateway.core.address import Address
from gateway.core.contracts import Begun, Wiring, begins
from gateway.core.contracts import Outbound as Member
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.selector.options import OutboundOptions


class Outbound:
    """See ``core.contracts.Group``."""

    type = "selector"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.members = tuple(options.outbounds)
        self._now = options.default or self.members[0]
        self._interrupt = options.interrupt_exist_connections
        self._wiring = wiring
        self._watchers: list[Callable[[], None]] = []

    @property
    def now(self) -> str:
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
