"""The bulk path: bytes between two established streams, moved from inside the edge, without a task.

::

    client ---- advance ----> remote        both plain: recv and send, and splice(2) once the direction is hot
           <--- advance -----               a layer on either side: recv_into, decode, encode, one send a wake-up

One handler a socket. A socket that cannot take more stops the reading of the other one (back-pressure by the epoll
mask); what it did not take is all that a flow ever holds. End of stream and reset are passed on as what they are. Dead
peers are found by TCP keep-alive (``lasts``).
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import TypeGuard

from gateway.core.contracts import Edge
from gateway.core.errors import GatewayError
from gateway.core.stream import Buffer, Layer, SocketBacked, Stream
from gateway.kernel.edge import HUP, IN, OUT, RDHUP
from gateway.kernel.sockopt import set_keep_alive
from gateway.kernel.splice import Pipe, Pipes

FIRST = 1 << 16
"""Bytes read at a time before a direction is hot."""
HOT = 1 << 18
"""Bytes wanted at a time from which splice(2) pays."""
ROUNDS = 4
"""Reads of one socket in one wake-up, so that a fast flow does not starve the others."""

_READ = IN | RDHUP
_GONE = -1
_NOT = (_GONE, _GONE)
_RESET = struct.pack("ii", 1, 0)
# One buffer for all flows: what is read is sent, or its rest copied, before the next read.
_BUFFER = bytearray(HOT)
_VIEW = memoryview(_BUFFER)

Done = Callable[[BaseException | None], None]


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset instead of an end of stream."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass  # closed already
    sock.close()


class Side:
    """One end: its socket, what it has still to send, and the direction from here to ``peer``."""

    __slots__ = (
        "eof",
        "fd",
        "layer",
        "mask",
        "moved",
        "out",
        "peer",
        "pipe",
        "relay",
        "shut",
        "sock",
        "stalled",
        "want",
    )

    peer: Side

    def __init__(self, relay: SocketRelay, sock: socket.socket, layer: Layer | None) -> None:
        self.relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.layer = layer
        self.mask = _GONE
        self.out: Buffer = b""
        self.pipe: Pipe | None = None
        self.eof = False
        self.shut = False
        self.stalled = False
        self.moved = 0
        self.want = FIRST

    def watch(self, mask: int) -> None:
        if mask == self.mask:
            return
        if self.mask == _GONE:
            self.relay.edge.add(self.fd, mask, self.ready)
        else:
            self.relay.edge.modify(self.fd, mask)
        self.mask = mask

    def ready(self, events: int) -> None:
        try:
            if self.mask & OUT and events & (OUT | HUP):
                self.peer.advance(False)
            if self.mask & IN:
                if events & (_READ | HUP):
                    self.advance(events & RDHUP != 0)
            elif events & HUP and self.mask == 0:
                self._hung_up()
        except (OSError, GatewayError) as error:
            self.relay.abort(error)

    def _hung_up(self) -> None:
        """An end that is not read now is gone. With an error both are; without one (both ways shut down, and the
        kernel would report it for ever) it is looked at again when the peer has taken what it was sent."""
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "reset")
        self.relay.edge.remove(self.fd)
        self.mask = _GONE

    def advance(self, ending: bool) -> None:
        """Move what there is to the peer. ``ending``: the end of stream is known to be near, so read up to it."""
        if self.fd < 0:
            return
        for _ in range(ROUNDS):
            if (self.peer.out or self.pipe is not None) and not self._drain():
                self._stall()
                return
            if self.eof:
                if not self._end():
                    self._stall()
                return
            try:
                count = self._move(socket.MSG_MORE if ending else 0)
            except (BlockingIOError, InterruptedError):
                break
            if count == 0:
                self.eof = True
            if self.eof and not self.peer.out:
                if not self._end():
                    self._stall()
                return
            if self.peer.out or self.pipe is not None:
                self._stall()
                return
            if count < self.want >> 1 and not ending:
                break
        if self.mask != _READ or self.stalled:
            self._flowing()

    def _flowing(self) -> None:
        peer = self.peer
        if self.stalled:
            self.stalled = False
            self.relay.pipes.stalled -= 1
            if peer.mask > 0:
                peer.watch(peer.mask & ~OUT)
        self.watch(OUT | _READ if self.mask > 0 and self.mask & OUT else _READ)

    def _stall(self) -> None:
        if not self.stalled:
            self.stalled = True
            self.relay.pipes.stalled += 1
        peer = self.peer
        self.watch(self.mask & OUT if self.mask > 0 else 0)
        peer.watch(peer.mask | OUT if peer.mask > 0 else OUT)

    def _move(self, flags: int) -> int:
        """Read once and pass it on; the count, 0 at the end of stream. ``flags``: MSG_MORE where that end is near, so
        that it goes with the last bytes in one segment."""
        want = most = self.want
        if self.relay.pipes.stalled:
            most = min(want, self.relay.pipes.most)
        if most >= HOT and self.layer is None and self.peer.layer is None:
            count = self._splice(most)
        else:
            count = self._copy(most if most < HOT else HOT, flags)
        if count >= want >> 1:
            self.want = min(want << 1, 1 << 20)
        elif count < FIRST >> 3:
            self.want = FIRST
        return count

    def _copy(self, most: int, flags: int = 0) -> int:
        count = self.sock.recv_into(_BUFFER, most)
        if count:
            data: Buffer = _VIEW[:count]
            if self.layer is not None:
                data = self.layer.decode(data)
                if self.layer.ended:
                    self.eof = True
                if not len(data):
                    return count
            self.moved += len(data)
            peer = self.peer
            peer.send(data if peer.layer is None else peer.layer.encode(data), flags)
        return count

    def put(self, data: Buffer) -> None:
        """Plain bytes to this socket; the rest is kept."""
        self.send(data if self.layer is None else self.layer.encode(data))

    def send(self, data: Buffer, flags: int = 0) -> None:
        try:
            sent = self.sock.send(data, flags)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(data):
            self.out = bytes(memoryview(data)[sent:])

    def _splice(self, most: int) -> int:
        pipe = self.relay.pipes.take()
        if pipe is None:
            return self._copy(HOT)
        self.pipe = pipe
        try:
            count = pipe.fill(self.fd, most)
            self.moved += count
            if not pipe.drain(self.peer.fd):
                return count
        except (BlockingIOError, InterruptedError):
            self._return_pipe()
            raise
        self._return_pipe()
        return count

    def _return_pipe(self) -> None:
        if self.pipe is not None:
            self.relay.pipes.give(self.pipe)
            self.pipe = None

    def _drain(self) -> bool:
        """Send what was kept; True where nothing is left."""
        peer = self.peer
        if peer.out:
            kept, peer.out = peer.out, b""
            peer.send(kept)
            if peer.out:
                return False
        if self.pipe is not None:
            if not self.pipe.drain(peer.fd):
                return False
            self._return_pipe()
        return True

    def _end(self) -> bool:
        """Pass the end of stream on. False where the peer's layer has an end mark that is not sent yet."""
        peer = self.peer
        if not peer.shut:
            peer.shut = True
            if peer.layer is not None:
                mark = peer.layer.encode_eof()
                if len(mark):
                    peer.send(mark)
                    if peer.out:
                        return False
        if peer.eof and self.shut and not self.out and peer.pipe is None:
            self.relay.finish(None)
            return True
        try:
            peer.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was reset; its own event will say so
        if self.stalled:
            self.stalled = False
            self.relay.pipes.stalled -= 1
        if peer.mask > 0:
            peer.watch(peer.mask & ~OUT)
        self.watch(self.mask & OUT if self.mask > 0 else 0)
        return True

    def close(self, hard: bool) -> None:
        fd, self.fd = self.fd, -1
        if self.stalled:
            self.stalled = False
            self.relay.pipes.stalled -= 1
        if self.pipe is not None:
            self._return_pipe()
        self.out = b""
        self.relay.edge.forget(fd)
        if hard:
            reset(self.sock)
        else:
            self.sock.close()


class SocketRelay:
    """Two sockets, each with or without a layer. ``done(error)`` is called once, at the end; ``up`` and ``down`` count
    plain bytes from the client and from the remote end."""

    __slots__ = ("_done", "client", "edge", "pipes", "remote")

    def __init__(
        self, edge: Edge, pipes: Pipes, client: socket.socket, inner: Layer | None, remote: socket.socket,
        outer: Layer | None, done: Done,
    ) -> None:  # fmt: skip
        self.edge = edge
        self.pipes = pipes
        self._done: Done | None = done
        self.client = Side(self, client, inner)
        self.remote = Side(self, remote, outer)
        self.client.peer, self.remote.peer = self.remote, self.client

    def start(self, early: Buffer = b"", late: Buffer = b"", *, sent: int = 0, watched: tuple[int, int] = _NOT) -> None:
        """``early`` was read from the client already and ``late`` from the remote end, as plain bytes; of ``early`` the
        remote socket has ``sent``. ``watched``: events for which the edge watches each socket already."""
        client, remote = self.client, self.remote
        client.mask, remote.mask = watched
        try:
            if early:
                client.moved = len(early)
                if sent < len(early):
                    remote.put(memoryview(early)[sent:])
            if late:
                remote.moved = len(late)
                client.put(late)
            for side in (client, remote):
                if side.mask != _GONE:
                    self.edge.rehandle(side.fd, side.ready)
                if side.peer.out:
                    side.stalled = True
                    self.pipes.stalled += 1
                # What it read before may have held the end mark, and then nothing more comes that would tell.
                side.eof = side.layer is not None and side.layer.ended
                side.watch((0 if side.stalled or side.eof else _READ) | (OUT if side.out else 0))
            for side in (client, remote):
                if side.eof:
                    side.advance(True)
        except (OSError, GatewayError) as error:
            self.abort(error)

    @property
    def up(self) -> int:
        return self.client.moved

    @property
    def down(self) -> int:
        return self.remote.moved

    def lasts(self) -> None:
        """From now on the kernel looks whether the remote end is still there; the client's socket has this from its
        listener."""
        try:
            set_keep_alive(self.remote.sock)
        except OSError:
            pass  # it ends in this very turn

    def finish(self, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            client, remote = self.client, self.remote
            client.close(error is not None)
            remote.close(error is not None)
            # Without its cycles a flow is gone at once, and the garbage collector has nothing to look for.
            del client.peer, client.relay, remote.peer, remote.relay
            done(error)

    def abort(self, error: BaseException) -> None:
        """A reset, a timeout or bytes that are wrong, on either side: both ends see a reset."""
        self.finish(error)

    def close(self) -> None:
        self.finish(ConnectionAbortedError("closed"))


class PumpRelay:
    """Streams of which one has no socket of its own (multiplexed, datagram carried): two tasks."""

    __slots__ = ("_done", "_streams", "_task", "down", "up")

    def __init__(self, client: Stream, remote: Stream, done: Done) -> None:
        self._streams = (client, remote)
        self._done = done
        self.up = 0
        self.down = 0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        client, remote = self._streams
        error: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(client, remote, True))
                group.create_task(self._pump(remote, client, False))
        except* (OSError, GatewayError) as errors:
            error = errors.exceptions[0]
        except* asyncio.CancelledError:
            error = ConnectionAbortedError("closed")
        finally:
            client.close()
            remote.close()
        self._done(error)

    async def _pump(self, source: Stream, target: Stream, upward: bool) -> None:
        while data := await source.read():
            if upward:
                self.up += len(data)
            else:
                self.down += len(data)
            await target.write(data)
        await target.write_eof()

    def close(self) -> None:
        self._task.cancel()


Relay = SocketRelay | PumpRelay


def backed(stream: Stream) -> TypeGuard[SocketBacked]:
    """Whether the relay can take its socket. (isinstance with a Protocol class costs as much as a system call.)"""
    return hasattr(stream, "detach")


def relay(edge: Edge, pipes: Pipes, client: Stream, remote: Stream, done: Done) -> Relay:
    """Take both streams over until both have ended. ``done`` may be called before this returns."""
    if backed(client) and backed(remote):
        near, inner, early = client.detach()
        far, outer, late = remote.detach()
        found = SocketRelay(edge, pipes, near, inner, far, outer, done)
        found.start(early, late)
        return found
    return PumpRelay(client, remote, done)
