"""How flows leave: TCP connections and UDP mappings with the dial fields of an outbound.

Names are tried as RFC 8305 (Happy Eyeballs 2) has it, section 5: families interleaved, the next address after
``fallback_delay`` or as soon as one failed, the first connection wins.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from gateway.config.shared import DialerOptions, DomainResolver
from gateway.core.address import IP, Address
from gateway.core.contracts import Begun, IPv4Address, Strategy, Wiring
from gateway.core.errors import DialError
from gateway.core.flow import Flow, Network
from gateway.core.stream import PacketConn, Stream
from gateway.kernel.mark import BYTE
from gateway.kernel.sockopt import IP_BIND_ADDRESS_NO_PORT, connection, set_keep_alive, set_mark
from gateway.transport.tcp import SocketStream
from gateway.transport.udp import Mapping, open_socket

IPPROTO_MPTCP = 262
TCP_FASTOPEN_CONNECT = 30
ATTEMPTS = 16
"""Addresses of one name that are tried."""

_text = lru_cache(4096)(str)
"""Of an address: the same few servers come again."""

_PENDING = {errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN, errno.EINTR}
_NOWHERE = Address(IPv4Address(0), 0)


class Dialer:
    """Connects for one outbound or DNS server. ``wiring`` is read at use, never in the constructor."""

    def __init__(self, options: DialerOptions, wiring: Wiring) -> None:
        self._options = options
        self._wiring = wiring
        self._binds: dict[int, str] = {}
        if options.inet4_bind_address:
            self._binds[socket.AF_INET] = options.inet4_bind_address
        if options.inet6_bind_address:
            self._binds[socket.AF_INET6] = options.inet6_bind_address

    async def connect(self, address: Address, flow: Flow | None = None) -> Stream:
        """A TCP connection to ``address``, through the ``detour`` where there is one (``flow`` is told to it).
        Raises DialError, stage "resolve" or "connect", and what the detour raises."""
        if self._options.detour:
            outbound = self._wiring.outbounds[self._options.detour]
            return await outbound.connect(flow or _anonymous("tcp", address), address)
        return SocketStream(self._wiring.edge, await self.connect_socket(address))

    def begin(self, address: Address, speaking: bool) -> Begun | None:
        """See ``core.contracts.Begins``."""
        ip, options = address.ip, self._options
        if ip is None or options.detour:
            return None
        try:
            sock = self._stream_socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6, lasting=False)
            try:
                if speaking and not options.tcp_multi_path:
                    # The handshake's last segment then waits for the first bytes and goes with them.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                error = sock.connect_ex((_text(ip), address.port))
                if error and error not in _PENDING:
                    raise OSError(error, os.strerror(error))
                return Begun(sock, options.connect_timeout)
            except BaseException:
                sock.close()
                raise
        except OSError as error:
            raise DialError(f"{address}: {error.strerror or error}") from error

    async def connect_socket(self, address: Address) -> socket.socket:
        """As ``connect``, past any detour; the caller owns the non-blocking socket."""
        if isinstance(address.host, str):
            targets = interleave(await self.resolve(address.host))
        else:
            targets = [address.host]
        try:
            if len(targets) == 1:
                sock, error = self._begin(targets[0], address.port)
                if not error:
                    return sock
                async with asyncio.timeout(self._options.connect_timeout or None):
                    await self._finish(sock)
                return sock
            async with asyncio.timeout(self._options.connect_timeout or None):
                return await self._race(targets[:ATTEMPTS], address.port)
        except TimeoutError:
            raise DialError(f"{address}: no answer within {self._options.connect_timeout:g} s") from None
        except OSError as error:
            raise DialError(f"{address}: {error.strerror or error}") from error

    async def open_packets(self, address: Address, flow: Flow | None = None) -> PacketConn:
        """A datagram mapping; ``address`` is only its first peer. Raises DialError and what the detour raises."""
        if self._options.detour:
            outbound = self._wiring.outbounds[self._options.detour]
            return await outbound.open_packets(flow or _anonymous("udp", address), address)
        return self.mapping(address)

    def mapping(self, address: Address) -> Mapping:
        """As ``open_packets``, past any detour and without waiting. Raises DialError."""
        mapping = Mapping(self._wiring.edge, self._packet_socket, self.resolve)
        if address.ip is not None:
            try:
                mapping.open(socket.AF_INET if address.ip.version == 4 else socket.AF_INET6)
            except OSError as error:
                raise DialError(f"{address}: {error.strerror or error}") from error
        return mapping

    async def resolve(self, domain: str) -> list[IP]:
        """Addresses of ``domain`` by ``domain_resolver``, else the route's default. Raises DialError, also where
        there is none."""
        chosen: Any = self._options.domain_resolver
        if not chosen:
            chosen = getattr(self._wiring.route, "default_domain_resolver", "") or ""
        server: str = chosen.server if isinstance(chosen, DomainResolver) else chosen
        strategy: Strategy = chosen.strategy if isinstance(chosen, DomainResolver) else ""
        found = await self._wiring.resolver.lookup(domain, server=server, strategy=strategy)
        if not found:
            raise DialError(f"{domain}: no address", "resolve")
        return found

    def _begin(self, ip: IP, port: int) -> tuple[socket.socket, int]:
        """A socket that connects, and 0 where it is connected already (near peers answer inside the call)."""
        sock = self._stream_socket(socket.AF_INET if ip.version == 4 else socket.AF_INET6)
        try:
            name = (_text(ip), port)
            error = sock.connect_ex(name)
            if error == errno.EINPROGRESS:
                error = sock.connect_ex(name)
            if error and error not in _PENDING:
                raise OSError(error, os.strerror(error))
            return sock, error
        except BaseException:
            sock.close()
            raise

    async def _finish(self, sock: socket.socket) -> None:
        try:
            await self._wiring.edge.writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
        except BaseException:
            sock.close()
            raise

    async def _attempt(self, ip: IP, port: int) -> socket.socket:
        sock, error = self._begin(ip, port)
        if error:
            await self._finish(sock)
        return sock

    async def _race(self, targets: list[IP], port: int) -> socket.socket:
        running: set[asyncio.Task[socket.socket]] = set()
        waiting = targets[::-1]
        failure = OSError(errno.EHOSTUNREACH, "no address answered")
        delay = float(self._options.fallback_delay) or 0.3
        try:
            while waiting or running:
                if waiting:
                    running.add(asyncio.ensure_future(self._attempt(waiting.pop(), port)))
                done, running = await asyncio.wait(
                    running, timeout=delay if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                won: socket.socket | None = None
                for task in done:
                    if isinstance(error := task.exception(), OSError):
                        failure = error
                    elif error is not None:
                        raise error
                    elif won is None:
                        won = task.result()
                    else:
                        task.result().close()
                if won is not None:
                    return won
            raise failure
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_discard)

    def _stream_socket(self, family: int, *, lasting: bool = True) -> socket.socket:
        options = self._options
        sock: socket.socket | None = None
        if options.tcp_multi_path:
            try:
                sock = connection(family, IPPROTO_MPTCP)
            except OSError:
                pass  # a kernel without MPTCP: plain TCP, as RFC 8684 falls back too
        sock = sock or connection(family)
        try:
            self._prepare(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if lasting:
                set_keep_alive(sock)
            if options.tcp_fast_open:
                sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        except BaseException:
            sock.close()
            raise
        return sock

    def _packet_socket(self, family: int) -> socket.socket:
        sock = open_socket(family)
        try:
            self._prepare(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def echo_socket(self, family: int) -> socket.socket:
        """See ``core.contracts.Echoes``. Through no detour. Raises OSError."""
        if self._options.detour:
            raise OSError(errno.EOPNOTSUPP, "ICMP goes through no detour")
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
        try:
            self._prepare(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _prepare(self, sock: socket.socket) -> None:
        options = self._options
        route = self._wiring.route
        set_mark(sock, self.mark)
        interface = options.bind_interface or getattr(route, "default_interface", "")
        if interface:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        if options.reuse_addr:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._binds and (bound := self._binds.get(sock.family)):
            if sock.type == socket.SOCK_STREAM:
                # The port is chosen at connect, by the whole four-tuple: no lack of ports for many peers.
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((bound, 0))

    @property
    def mark(self) -> int:
        """SO_MARK of this outbound's sockets: the configuration's bits, except in the byte that is the gateway's own
        while it steers (else a configured mark could send our own flows back to us)."""
        own = self._wiring.mark
        wanted = int(self._options.routing_mark) or int(getattr(self._wiring.route, "default_mark", 0))
        return wanted & ~BYTE | own if own else wanted


def interleave(found: list[IP]) -> list[IP]:
    """Families alternate, the first one first (RFC 8305 section 4)."""
    first = [ip for ip in found if ip.version == found[0].version]
    other = [ip for ip in found if ip.version != found[0].version]
    return [ip for pair in zip_longest(first, other) for ip in pair if ip is not None]


def _anonymous(network: Network, address: Address) -> Flow:
    """Who dials for itself: a DNS server, a health check."""
    return Flow(network, "", "", _NOWHERE, address)


def _discard(task: asyncio.Task[socket.socket]) -> None:
    """A connection that won too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
