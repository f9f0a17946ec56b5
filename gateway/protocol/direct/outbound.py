"""Flows leave as they are."""

from __future__ import annotations

from socket import socket

from gateway.core.address import Address
from gateway.core.contracts import Begun, Wiring
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.protocol.direct.options import OutboundOptions
from gateway.transport.dial import Dialer


class Outbound:
    type = "direct"
    networks: frozenset[Network] = frozenset({"tcp", "udp"})

    def __init__(self, tag: str, options: OutboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self._host = options.override_address
        self._port = options.override_port
        self._dialer = Dialer(options, wiring)

    def _target(self, destination: Address) -> Address:
        if not self._host and not self._port:
            return destination
        return Address.of(self._host or destination.host, self._port or destination.port)

    def begin(self, destination: Address, speaking: bool) -> Begun | None:
        return self._dialer.begin(self._target(destination), speaking)

    async def connect(self, flow: Flow, destination: Address) -> Stream:
        return await self._dialer.connect(self._target(destination), flow)

    async def open_packets(self, flow: Flow, destination: Address) -> PacketConn:
        return await self._dialer.open_packets(self._target(destination), flow)

    def echo_socket(self, family: int) -> socket:
        return self._dialer.echo_socket(family)

    async def close(self) -> None:
        """Nothing is pooled."""
