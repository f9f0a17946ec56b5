"""Flows leave through a Trojan server here."""

from __future__ import annotations

from gateway.config.shared import networks
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.flow import Flow
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.trojan import codec
from gateway.protocol.trojan.options import OutboundOptions
from gateway.transport.carried import Packets
from gateway.transport.handshake import handshake
from gateway.transport.remote import Remote


class Outbound:
    type = "trojan"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.networks = networks(options.network)
        self._wiring = wiring
        self._key = codec.key(options.password)
        self._remote = Remote(options, wiring)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        """The request goes out at once, without waiting for the client's first bytes: where the server speaks first
        there are none."""
        return await self._request(flow, codec.CONNECT, destination)

    async def _request(self, flow: Flow, command: int, destination: Address) -> Stream:
        stream = await self._remote.connect(flow)
        with handshake("trojan", stream):
            await stream.write(codec.request(self._key, command, destination))
        return stream

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        stream = await self._request(flow, codec.ASSOCIATE, destination)
        return Packets(self._wiring.edge, stream, codec.Datagrams())

    async def close(self) -> None:
        """Nothing is pooled."""
