"""Where flows come in: TCP and UDP listeners with the listen fields of an inbound.

Accepted sockets inherit what the listener has set (TCP_NODELAY, keep-alive, SO_MARK), so accepting costs accept4(2) and
nothing more.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Coroutine
from ipaddress import IPv6Address, ip_address
from typing import Any

from gateway.config.shared import ListenOptions
from gateway.core.address import IP, Address
from gateway.core.contracts import Edge, Wiring
from gateway.core.stream import Buffer, Receiver
from gateway.kernel.edge import IN
from gateway.kernel.mark import BYTE
from gateway.kernel.sockopt import KEEP_ALIVE, accept, address_of, set_keep_alive, set_mark
from gateway.transport.tcp import SocketStream
from gateway.transport.udp import NAMES, Port, SockAddr, open_socket, transmit

log = logging.getLogger("gateway.listen")

BACKLOG = 4096
BATCH = 64
"""Connections accepted in one wake-up, so that flows already running get their turn."""
PAUSE = 0.5
"""Seconds without accepting after the process ran out of descriptors or memory."""
HANDSHAKES = 4096
"""Connections of one listener whose handshake runs; further ones wait in the kernel's backlog."""
HANDSHAKES_OF_ONE = 1024
"""The same for one client address; further ones are closed, so that other clients need not wait."""

TCP_FASTOPEN = 23
IPPROTO_MPTCP = 262
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Accepted = Callable[[socket.socket, SockAddr], None]
Serve = Callable[[SocketStream, Address], Coroutine[Any, Any, None]]


def listen_address(options: ListenOptions) -> tuple[int, str]:
    """Family and address to bind: ``listen`` empty is the IPv6 wildcard, which takes IPv4 too, or the IPv4 wildcard
    where the host has no IPv6."""
    if options.listen:
        ip = ip_address(options.listen)
        return (socket.AF_INET6 if ip.version == 6 else socket.AF_INET), str(ip)
    return (socket.AF_INET6, "::") if has_ipv6() else (socket.AF_INET, "0.0.0.0")


def has_ipv6() -> bool:
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM | socket.SOCK_CLOEXEC).close()
    except OSError:
        return False
    return True


def _prepare(sock: socket.socket, options: ListenOptions, wiring: Wiring, only_v6: bool) -> None:
    own, wanted = wiring.mark, int(options.routing_mark)
    # Answers of a listener leave with its mark: without it the output chain would steer them back to us.
    set_mark(sock, wanted & ~BYTE | own if own else wanted)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
    if options.bind_interface:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.bind_interface.encode())


def stream_socket(
    options: ListenOptions, wiring: Wiring, family: int, host: str, *, only_v6: bool = False,
    tune: Callable[[socket.socket], None] | None = None,
) -> socket.socket:  # fmt: skip
    """A listening TCP socket; ``tune`` sees it before it is bound. Raises OSError."""
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock: socket.socket | None = None
    if options.tcp_multi_path:
        try:
            sock = socket.socket(family, kind, IPPROTO_MPTCP)
        except OSError:
            pass
    sock = sock or socket.socket(family, kind)
    try:
        _prepare(sock, options, wiring, only_v6)
        # Without it a restart fails while old connections are in TIME_WAIT; two listeners still cannot share a port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if options.tcp_keep_alive >= 0:
            set_keep_alive(sock, _seconds(options.tcp_keep_alive, KEEP_ALIVE))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _seconds(options.tcp_keep_alive_interval, 75))
        if options.tcp_fast_open:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 256)
        if tune is not None:
            tune(sock)
        sock.bind((host, options.listen_port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def packet_socket(
    options: ListenOptions, wiring: Wiring, family: int, host: str, *, only_v6: bool = False,
    tune: Callable[[socket.socket], None] | None = None,
) -> socket.socket:  # fmt: skip
    """A bound UDP socket; ``tune`` sees it before it is bound. Raises OSError."""
    sock = open_socket(family)
    try:
        _prepare(sock, options, wiring, only_v6)
        if options.reuse_addr:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if tune is not None:
            tune(sock)
        sock.bind((host, options.listen_port))
    except BaseException:
        sock.close()
        raise
    return sock


def _seconds(value: float, default: int) -> int:
    return max(1, round(value)) if value > 0 else default


class Acceptor:
    """Accepts on one listening socket until it is closed; owns it. ``accepted`` gets non-blocking sockets."""

    def __init__(self, edge: Edge, sock: socket.socket, accepted: Accepted) -> None:
        self._edge = edge
        self._accepted = accepted
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self.sock = sock
        edge.add(sock.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        for _ in range(BATCH):
            if self._stopped:
                return
            try:
                sock, name = accept(self.sock)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("accept: %s; pausing for %g s", error.strerror, PAUSE)
                    self._pause()
                    return
                continue  # the client was gone before we came
            self._accepted(sock, name)

    def _pause(self) -> None:
        self.stop()
        self._timer = self._edge.loop.call_later(PAUSE, self.resume)

    def stop(self) -> None:
        """Leave new connections in the kernel's backlog."""
        self._stopped = True
        self._edge.remove(self.sock.fileno())

    def resume(self) -> None:
        self._timer = None
        if self._stopped and self.sock.fileno() >= 0:
            self._stopped = False
            self._edge.add(self.sock.fileno(), IN, self._ready)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.sock.fileno() >= 0:
            self.stop()
            self.sock.close()


class StreamListener:
    """TCP connections, each served by a task of its own: for inbounds with a handshake.

    ``serve(stream, source)`` owns the stream. ``bound`` is where it listens, after ``start``.
    """

    def __init__(self, options: ListenOptions, wiring: Wiring, serve: Serve) -> None:
        self._options = options
        self._wiring = wiring
        self._serve = serve
        self._acceptor: Acceptor | None = None
        self._tasks: dict[asyncio.Task[None], IP | str] = {}
        self._counts: Counter[IP | str] = Counter()
        self.bound = Address(IPv6Address(0), 0)

    async def start(self) -> None:
        """Bind and accept. Raises OSError."""
        sock = stream_socket(self._options, self._wiring, *listen_address(self._options))
        self.bound = address_of(sock.getsockname())
        self._acceptor = Acceptor(self._wiring.edge, sock, self._accepted)

    def _accepted(self, sock: socket.socket, name: SockAddr) -> None:
        source = address_of(name)
        if self._counts[source.host] >= HANDSHAKES_OF_ONE:
            sock.close()
            return
        self._counts[source.host] += 1
        task = self._wiring.edge.loop.create_task(self._serve(SocketStream(self._wiring.edge, sock), source))
        self._tasks[task] = source.host
        task.add_done_callback(self._finished)
        if len(self._tasks) >= HANDSHAKES and self._acceptor is not None:
            self._acceptor.stop()

    def _finished(self, task: asyncio.Task[None]) -> None:
        host = self._tasks.pop(task)
        self._counts[host] -= 1
        if not self._counts[host]:
            del self._counts[host]
        if len(self._tasks) == HANDSHAKES - 1 and self._acceptor is not None:
            self._acceptor.resume()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._wiring.edge.loop.call_exception_handler({"message": "inbound failed", "exception": error})

    async def close(self) -> None:
        """Stop accepting and end handshakes; flows that the router has go on."""
        if self._acceptor is not None:
            self._acceptor.close()
            self._acceptor = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class PacketListener:
    """Datagrams of one bound UDP socket: ``received(data, source, segment)``, ``send(data, peer)``."""

    def __init__(self, options: ListenOptions, wiring: Wiring, received: Receiver) -> None:
        self._options = options
        self._wiring = wiring
        self._receiver = received
        self._port: Port | None = None
        self._sources: dict[SockAddr, Address] = {}
        self._targets: dict[Address, SockAddr] = {}
        self.bound = Address(IPv6Address(0), 0)

    async def start(self) -> None:
        """Bind and receive. Raises OSError."""
        sock = packet_socket(self._options, self._wiring, *listen_address(self._options))
        self.bound = address_of(sock.getsockname())
        self._port = Port(self._wiring.edge, sock, self._received)

    def _received(self, data: memoryview, name: SockAddr, segment: int, ancillary: object) -> None:
        source = self._sources.get(name)
        if source is None:
            source = address_of(name)
            if len(self._sources) >= NAMES:
                self._sources.clear()
                self._targets.clear()
            self._sources[name] = source
            self._targets[source] = name
        self._receiver(data, source, segment)

    def send(self, data: Buffer, peer: Address, segment: int = 0) -> None:
        """Send at once or drop."""
        port = self._port
        if port is None:
            return
        name = self._targets.get(peer)
        if name is None:
            # On a dual-stack socket IPv4 peers are spelt as mapped addresses.
            mapped = port.sock.family == socket.AF_INET6 and peer.ip is not None and peer.ip.version == 4
            name = (f"::ffff:{peer.host}" if mapped else str(peer.host), peer.port)
        transmit(port.sock, data, name, segment)

    async def close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None
