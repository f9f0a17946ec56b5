"""What carries bytes: the stream and packet contracts between inbounds, outbounds and the relay.

A flow has two lives. During the handshake somebody awaits ``read`` and ``write``. Afterwards the relay takes over and
wants no coroutine per chunk: it asks the stream for its socket and its layer and moves bytes itself, by splice(2) where
there is no layer, else by one ``recv_into``, one ``decode`` / ``encode``, one ``send`` per wake-up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from socket import socket
from typing import Protocol, runtime_checkable

from gateway.core.address import Address

Buffer = bytes | bytearray | memoryview


class Layer(Protocol):
    """One framed or encrypted layer over a byte stream, both directions, without I/O.

    Both methods may return a view of a buffer that the layer owns: it is valid until the next call of the same method,
    so the caller sends or copies it before that. Neither keeps its argument.
    """

    @property
    def ended(self) -> bool:
        """``decode`` has come to the peer's end mark: nothing follows, though the connection under it may stay open.
        False for ever where the layer has no end mark."""

    def encode(self, data: Buffer) -> Buffer:
        """Plain bytes to wire bytes. ``data`` may be empty (asks for whatever the layer itself wants to say)."""

    def decode(self, data: Buffer) -> Buffer:
        """Wire bytes to plain bytes; keeps at most one partial frame. Raises PeerError on bad bytes, AuthError where
        a tag does not verify."""

    def encode_eof(self) -> Buffer:
        """What to send before the write side is shut down; empty where the layer has no end mark."""


@runtime_checkable
class Stream(Protocol):
    """A full-duplex byte stream with half-close."""

    async def read(self, limit: int = 65536) -> bytes:
        """Between 1 and ``limit`` bytes, or b"" after the peer's end of stream. Raises OSError or PeerError."""

    async def write(self, data: Buffer) -> None:
        """Send everything; returns when the kernel has taken it."""

    async def write_eof(self) -> None:
        """Half-close: no more writes; reading goes on."""

    def unread(self, data: bytes) -> None:
        """Put plain bytes back in front (sniffed bytes, what came after a handshake)."""

    def close(self) -> None:
        """Release everything at once; idempotent. Pending data may be lost, as with close(2)."""


@runtime_checkable
class SocketBacked(Protocol):
    """A stream that the relay may take over: raw socket, layer, and what was read and not consumed."""

    def detach(self) -> tuple[socket, Layer | None, bytes]:
        """Give away the non-blocking socket, the layer (None: bytes go as they are) and the unread plain bytes; the
        stream is unusable afterwards and no longer closes the socket."""


Receiver = Callable[[Buffer, Address, int], None]
"""(data, peer, segment): ``segment`` > 0 says that data holds several datagrams of that size (the last may be shorter),
as UDP_GRO delivers them; 0 says one datagram. ``data`` is valid only during the call."""


def datagrams(data: Buffer, segment: int) -> Iterator[memoryview]:
    """The datagrams of a batch, see ``Receiver``; of one datagram itself, also where it is empty."""
    view = memoryview(data)
    size = segment or max(len(view), 1)
    for start in range(0, max(len(view), 1), size):
        yield view[start : start + size]


class PacketConn(Protocol):
    """Datagrams to and from many peers through one local mapping (endpoint-independent)."""

    @property
    def closed(self) -> bool:
        """No datagram passes any more: ``close`` was called, or what carried them has ended."""

    def send(self, data: Buffer, destination: Address, segment: int = 0) -> None:
        """Send at once or drop (a full socket buffer, an unresolved name over its bound); never blocks or raises for
        a single lost datagram."""

    def start(self, receiver: Receiver) -> None:
        """Deliver datagrams from now on; what came earlier is delivered first."""

    def close(self) -> None:
        """Idempotent."""
