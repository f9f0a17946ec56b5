"""Flows end here."""

from __future__ import annotations

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import Rejected
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.block.options import OutboundOptions


class Outbound:
    type = "block"
    networks: frozenset[Network] = frozenset({"tcp", "udp"})

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        raise Rejected(f"outbound {self.tag} blocks")

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        raise Rejected(f"outbound {self.tag} blocks")

    async def close(self) -> None:
        """It holds nothing."""
