"""Flows leave through a Shadowsocks server here."""

from __future__ import annotations

import os
import time

from gateway.config.shared import networks
from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import AuthError, LocalError, PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Buffer, PacketConn, Receiver, Stream, datagrams
from gateway.protocol.shadowsocks import codec, packet
from gateway.protocol.shadowsocks.cipher import METHODS, client_keys
from gateway.protocol.shadowsocks.options import OutboundOptions
from gateway.transport.dial import Dialer
from gateway.transport.handshake import handshake
from gateway.transport.layered import add_layer


class Outbound:
    type = "shadowsocks"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.networks = networks(options.network)
        self._wiring = wiring
        self._server = Address.of(options.server, options.server_port)
        self._method = METHODS[options.method]
        self._keys = client_keys(self._method, options.password)
        self._dialer = Dialer(options, wiring)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        """The request goes out at once, without waiting for the client's first bytes: where the server speaks first
        there are none."""
        stream = await self._dialer.connect(self._server, flow)
        with handshake("shadowsocks", stream):
            if not self._method.key:
                await stream.write(socksaddr.write(destination))
                return stream
            layer = codec.Client(self._method, self._keys, destination, os.urandom, time.time)
            await stream.write(layer.hello())
            return add_layer(self._wiring.edge, stream, layer)

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        inner = await self._dialer.open_packets(self._server, flow)
        return Packets(inner, self._server, packet.Client(self._method, self._keys, os.urandom, time.time))

    async def close(self) -> None:
        """Nothing is pooled."""


class Packets:
    """One UDP session at the server. See ``core.stream.PacketConn``."""

    def __init__(self, inner: PacketConn, server: Address, client: packet.Client) -> None:
        self._inner = inner
        self._server = server
        self._client = client

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def send(self, data: Buffer, destination: Address, segment: int = 0) -> None:
        for datagram in datagrams(data, segment):
            try:
                wire = self._client.seal(datagram, destination)
            except LocalError:
                return
            self._inner.send(wire, self._server)

    def start(self, receiver: Receiver) -> None:
        def received(data: Buffer, peer: Address, segment: int) -> None:
            for datagram in datagrams(data, segment):
                try:
                    source, payload = self._client.open(datagram)
                except (AuthError, PeerError):
                    continue
                receiver(payload, source, 0)

        self._inner.start(received)

    def close(self) -> None:
        self._inner.close()
