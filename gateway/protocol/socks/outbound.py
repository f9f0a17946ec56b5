"""Flows leave through a SOCKS server here."""

from __future__ import annotations

import asyncio

from gateway.config.shared import networks
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError, LocalError, PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Buffer, PacketConn, Receiver, Stream, datagrams
from gateway.protocol.socks import codec
from gateway.protocol.socks.options import OutboundOptions
from gateway.transport.dial import Dialer
from gateway.transport.handshake import handshake

HANDSHAKE = 15.0
"""Seconds that the server may take to connect."""


class Outbound:
    type = "socks"

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self._version: codec.Version = options.version or "5"
        # SOCKS 4 has no UDP.
        self.networks = frozenset(name for name in networks(options.network) if name == "tcp" or self._version == "5")
        self._wiring = wiring
        self._options = options
        self._server = Address.of(options.server, options.server_port)
        self._dialer = Dialer(options, wiring)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        if self._version == "4" and destination.domain:
            found = await self._wiring.resolver.lookup(destination.domain, strategy="ipv4_only")
            if not found:
                raise DialError(f"{destination.domain} has no IPv4 address", "resolve")
            destination = Address(found[0], destination.port)
        stream, _ = await self._shake(flow, destination, codec.CONNECT)
        return stream

    async def _shake(self, flow: Flow, destination: Address, command: int) -> tuple[Stream, Address]:
        options = self._options
        stream = await self._dialer.connect(self._server, flow)
        with handshake("socks", stream):
            async with asyncio.timeout(HANDSHAKE):
                client = codec.Client(self._version, destination, command, options.username, options.password)
                await stream.write(client.hello())
                while client.bound is None:
                    data = await stream.read()
                    if not data:
                        raise PeerError("server closed the connection")
                    answer = client.receive(data)
                    if answer:
                        await stream.write(answer)
        stream.unread(client.rest)
        return stream, client.bound

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        if "udp" not in self.networks:
            raise DialError(f"SOCKS {self._version} carries no UDP", "connect")
        control, bound = await self._shake(flow, codec.ANY, codec.ASSOCIATE)
        # A server that binds to all its addresses, or does not know its own, means the one we reached it at.
        relay = self._server if bound.ip is not None and bound.ip.is_unspecified else bound
        relay = Address(relay.host, bound.port)
        try:
            inner = await self._dialer.open_packets(relay, flow)
        except BaseException:
            control.close()
            raise
        return Packets(inner, relay, control)

    async def close(self) -> None:
        """Nothing is pooled."""


class Packets:
    """One association. See ``core.stream.PacketConn``. It ends with its TCP connection: then datagrams are dropped."""

    def __init__(self, inner: PacketConn, relay: Address, control: Stream) -> None:
        self._inner = inner
        self._relay = relay
        self._control = control
        self._watch = asyncio.ensure_future(self._watched())

    async def _watched(self) -> None:
        try:
            while await self._control.read():
                pass
        except (OSError, PeerError):
            pass
        self._inner.close()

    @property
    def closed(self) -> bool:
        return self._inner.closed

    def send(self, data: Buffer, destination: Address, segment: int = 0) -> None:
        try:
            header = codec.wrap(destination)
        except LocalError:
            return
        for datagram in datagrams(data, segment):
            self._inner.send(header + datagram, self._relay)

    def start(self, receiver: Receiver) -> None:
        def received(data: Buffer, peer: Address, segment: int) -> None:
            for datagram in datagrams(data, segment):
                try:
                    source, payload = codec.unwrap(datagram)
                except PeerError:
                    continue
                receiver(payload, source, 0)

        self._inner.start(received)

    def close(self) -> None:
        self._watch.cancel()
        self._inner.close()
        self._control.close()
