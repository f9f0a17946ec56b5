"""Shadowsocks clients come in here.

Who does not authenticate is told nothing: the connection is drained, up to a bound, until the client closes it (SIP022
section 3.1.5 and the advice of shadowsocks.org against probing).
"""

from __future__ import annotations

import asyncio
import os
import time

from gateway.config.shared import networks
from gateway.core import socksaddr
from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import AuthError, PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Buffer, datagrams
from gateway.core.wire import Incomplete, Reader
from gateway.kernel.sockopt import address_of
from gateway.protocol.shadowsocks import codec, packet
from gateway.protocol.shadowsocks.cipher import METHODS, main_key
from gateway.protocol.shadowsocks.codec import User
from gateway.protocol.shadowsocks.options import InboundOptions
from gateway.protocol.shadowsocks.replay import SaltFilter
from gateway.transport.listen import PacketListener, StreamListener
from gateway.transport.tcp import SocketStream

HANDSHAKE = 15.0
"""Seconds that a client may take for its request."""
DRAIN = 30.0
"""Seconds that a connection without a valid request is read and thrown away."""
DRAINS = 256
"""Connections drained at once; beyond, they are closed."""


class Inbound:
    type = "shadowsocks"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self._wiring = wiring
        self._method = method = METHODS[options.method]
        self._users = [User(user.name, main_key(method, user.password)) for user in options.users]
        self._key = b""
        self._identities = None
        if self._users and method.modern:
            self._key = main_key(method, options.password)
            self._identities = codec.identities_of(self._users)
        elif not self._users:
            self._users = [User("", main_key(method, options.password))]
        self._seen = SaltFilter()
        self._drains = 0
        self._packets = packet.Server(method, self._users, os.urandom, time.time, self._key, self._identities)
        wanted = networks(options.network)
        self._stream = StreamListener(options, wiring, self._serve) if "tcp" in wanted else None
        self._packet = PacketListener(options, wiring, self._datagram) if "udp" in wanted else None

    async def start(self) -> None:
        for listener in (self._stream, self._packet):
            if listener is not None:
                await listener.start()

    async def close(self) -> None:
        for listener in (self._stream, self._packet):
            if listener is not None:
                await listener.close()

    async def _serve(self, stream: SocketStream, source: Address) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE):
                request = await (self._shake(stream) if self._method.key else plain_request(stream))
        except (AuthError, PeerError, TimeoutError):
            request = None
        except OSError:
            stream.close()
            return
        except asyncio.CancelledError:
            stream.close()
            raise
        if request is None:
            await self._drain(stream)
            return
        local = address_of(stream.sock.getsockname())
        flow = Flow("tcp", self.tag, self.type, source, request.destination, request.user, local=local)
        self._wiring.router.route_stream(flow, stream)

    async def _shake(self, stream: SocketStream) -> codec.Request | None:
        """Read the request; put the layer on ``stream``. None where the client closed before it was whole."""
        layer = codec.Server(self._method, self._users, self._seen, os.urandom, time.time, self._key, self._identities)
        while True:
            data = await stream.read()
            if not data:
                return None
            plain = bytes(layer.decode(data))
            if layer.request is not None:
                stream.layer = layer
                stream.unread(plain)
                return layer.request

    async def _drain(self, stream: SocketStream) -> None:
        if self._drains >= DRAINS:
            stream.close()
            return
        self._drains += 1
        try:
            async with asyncio.timeout(DRAIN):
                while await stream.read():
                    pass
        except (OSError, TimeoutError):
            pass
        finally:
            self._drains -= 1
            stream.close()

    def _datagram(self, data: Buffer, source: Address, segment: int) -> None:
        for datagram in datagrams(data, segment):
            try:
                found = self._packets.open(datagram)
            except (AuthError, PeerError):
                continue
            self._route(found, source)

    def _route(self, found: packet.Datagram, source: Address) -> None:
        def reply(data: Buffer, peer: Address, segment: int) -> None:
            for datagram in datagrams(data, segment):
                try:
                    wire = self._packets.seal(found.session, datagram, peer)
                except PeerError:
                    return
                if self._packet is not None:
                    self._packet.send(wire, source)

        local = None if self._packet is None else self._packet.bound
        flow = Flow("udp", self.tag, self.type, source, found.destination, found.session.user.name, local=local)
        self._wiring.router.route_packet(flow, found.payload, reply)


async def plain_request(stream: SocketStream) -> codec.Request | None:
    """The address at the head of a stream of method ``none``."""
    data = b""
    while True:
        more = await stream.read()
        if not more:
            return None
        data += more
        reader = Reader(data)
        try:
            destination = socksaddr.read(reader)
        except Incomplete:
            continue
        stream.unread(reader.rest())
        return codec.Request(destination, "")
