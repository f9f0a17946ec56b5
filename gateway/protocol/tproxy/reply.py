"""Answers of captured UDP flows: from sockets bound to the address that the client had written to."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.stream import Buffer, Receiver
from gateway.kernel.sockopt import family_of, set_mark, set_transparent, sockaddr
from gateway.protocol.tproxy.raw import Raw
from gateway.transport.udp import SockAddr, transmit

MOST = 1024
"""Sockets at once; at the bound the one unused for longest is closed."""
IDLE = 60.0
"""Seconds without an answer after which a socket is closed; the next answer opens it anew."""


class Bound:
    """Sends as ``peer``, whose address need not be ours. Raises OSError: EADDRINUSE where its port is taken."""

    def __init__(self, peer: Address, mark: int) -> None:
        assert peer.ip is not None
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = socket.socket(family_of(peer.ip), kind)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            set_transparent(self._sock)
            set_mark(self._sock, mark)
            self._sock.bind(sockaddr(peer.ip, peer.port))
        except OSError:
            self._sock.close()
            raise

    def send(self, data: Buffer, name: SockAddr, segment: int = 0) -> None:
        transmit(self._sock, data, name, segment)

    def close(self) -> None:
        self._sock.close()


class Replies:
    """Bound sockets by the address they speak for, the last used one last."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._sockets: dict[Address, tuple[Bound | Raw, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._clock: Callable[[], float] = wiring.edge.loop.time

    def receiver(self, client: SockAddr) -> Receiver:
        """What sends to ``client``."""
        version = 6 if ":" in client[0] else 4

        def reply(data: Buffer, peer: Address, segment: int) -> None:
            # An answer from the other family, or from a name, cannot be what the client waits for.
            if peer.ip is None or peer.ip.version != version:
                return
            sock = self._socket(peer)
            if sock is not None:
                sock.send(data, client, segment)

        return reply

    def _socket(self, peer: Address) -> Bound | Raw | None:
        now = self._clock()
        found = self._sockets.pop(peer, None)
        sock = found[0] if found is not None else self._open(peer)
        if sock is not None:
            self._sockets[peer] = (sock, now)
            if self._timer is None:
                self._timer = self._wiring.edge.loop.call_later(IDLE, self._sweep)
        return sock

    def _open(self, peer: Address) -> Bound | Raw | None:
        if len(self._sockets) >= MOST:
            oldest = next(iter(self._sockets))
            self._sockets.pop(oldest)[0].close()
        try:
            return Bound(peer, self._wiring.mark)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return None
        # A service of this host has the port at every address, and does not share it.
        try:
            return Raw(peer, self._wiring.mark)
        except OSError:
            return None

    def _sweep(self) -> None:
        self._timer = None
        limit = self._clock() - IDLE
        for peer, (sock, used) in list(self._sockets.items()):
            if used > limit:
                break
            sock.close()
            del self._sockets[peer]
        if self._sockets:
            self._timer = self._wiring.edge.loop.call_later(IDLE / 4, self._sweep)

    def close(self) -> None:
        """Sessions that run on open their sockets anew."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for sock, _ in self._sockets.values():
            sock.close()
        self._sockets.clear()
