"""Flows leave through a VLESS server here."""

from __future__ import annotations

from gateway.config.shared import networks
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError
from gateway.core.flow import Flow
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.vless import codec, packet
from gateway.protocol.vless.apart import Apart
from gateway.protocol.vless.options import OutboundOptions
from gateway.transport.carried import Packets
from gateway.transport.handshake import handshake
from gateway.transport.layered import add_layer
from gateway.transport.remote import Remote


class Outbound:
    type = "vless"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.networks = networks(options.network)
        self._wiring = wiring
        self._user = codec.identity(options.uuid)
        self._encoding = "xudp" if options.packet_encoding is None else options.packet_encoding
        self._remote = Remote(options, wiring)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        """The request goes out at once, without waiting for the client's first bytes: where the server speaks first
        there are none. The response comes with the server's first bytes."""
        return await self._request(flow, codec.TCP, destination)

    async def _request(self, flow: Flow, command: int, destination: Address | None) -> Stream:
        stream = await self._remote.connect(flow)
        with handshake("vless", stream):
            await stream.write(codec.request(self._user, command, destination))
            return add_layer(self._wiring.edge, stream, codec.Client())

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        edge = self._wiring.edge
        if self._encoding == "xudp":
            return Packets(edge, await self._request(flow, codec.MUX, None), packet.Xudp(destination))
        if self._encoding == "packetaddr":
            if destination.domain is not None:
                raise DialError("packetaddr carries datagrams to addresses, not to names", "connect")
            stream = await self._request(flow, codec.UDP, packet.PACKET_ADDRESS)
            return Packets(edge, stream, packet.PacketAddress())

        async def dial(peer: Address) -> PacketConn:
            return Packets(edge, await self._request(flow, codec.UDP, peer), packet.Plain(peer))

        return Apart(edge, dial, destination, await dial(destination))

    async def close(self) -> None:
        """Nothing is pooled."""
