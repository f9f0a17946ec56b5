"""A port whose flows all go to one place."""

from __future__ import annotations

from gateway.config.shared import networks
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.flow import Flow
from gateway.core.stream import Buffer, Receiver
from gateway.kernel.sockopt import address_of
from gateway.protocol.direct.options import InboundOptions
from gateway.transport.listen import PacketListener, StreamListener
from gateway.transport.tcp import SocketStream

KNOWN = 4096
"""Sources whose flow is remembered; at the bound all are forgotten and learned anew."""


class Inbound:
    type = "direct"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self._options = options
        self._wiring = wiring
        wanted = networks(options.network)
        self._stream = StreamListener(options, wiring, self._serve) if "tcp" in wanted else None
        self._packet = PacketListener(options, wiring, self._datagram) if "udp" in wanted else None
        self._known: dict[Address, tuple[Flow, Receiver]] = {}

    async def start(self) -> None:
        for listener in (self._stream, self._packet):
            if listener is not None:
                await listener.start()

    def _target(self, bound: Address) -> Address:
        return Address.of(self._options.override_address or bound.host, self._options.override_port or bound.port)

    async def _serve(self, stream: SocketStream, source: Address) -> None:
        local = address_of(stream.sock.getsockname())
        flow = Flow("tcp", self.tag, self.type, source, self._target(local), local=local)
        self._wiring.router.route_stream(flow, stream)

    def _datagram(self, data: Buffer, source: Address, segment: int) -> None:
        flow, reply = self._known.get(source) or self._learn(source)
        self._wiring.router.route_packet(flow, data, reply, segment)

    def _learn(self, source: Address) -> tuple[Flow, Receiver]:
        packet = self._packet
        assert packet is not None
        if len(self._known) >= KNOWN:
            self._known.clear()
        flow = Flow("udp", self.tag, self.type, source, self._target(packet.bound), local=packet.bound)

        def reply(data: Buffer, peer: Address, segment: int) -> None:
            packet.send(data, source, segment)

        known = self._known[source] = flow, reply
        return known

    async def close(self) -> None:
        for listener in (self._stream, self._packet):
            if listener is not None:
                await listener.close()
