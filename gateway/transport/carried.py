"""Datagrams carried by a stream, one after another: a PacketConn for protocols without UDP of their own."""

from __future__ import annotations

import asyncio
from typing import Protocol

from gateway.core.address import Address
from gateway.core.contracts import Edge
from gateway.core.errors import GatewayError, LocalError, PeerError
from gateway.core.stream import Buffer, Receiver, Stream, datagrams
from gateway.core.wire import Incomplete, Reader

WAITING = 1 << 18
"""Bytes that wait for a stream that does not take them; further datagrams are dropped."""
EARLY = 16
"""Datagrams kept until somebody listens."""
LONGEST = 1 << 17
"""Bytes of one frame: a datagram and whatever a protocol puts around it."""


class Framing(Protocol):
    """How datagrams stand in the stream. Without I/O."""

    def wrap(self, data: Buffer, peer: Address) -> bytes:
        """Raises LocalError for what cannot be said: the datagram is dropped."""

    def unwrap(self, reader: Reader) -> tuple[Address, bytes] | None:
        """The next frame; None where it holds no datagram. Raises Incomplete where bytes are missing, PeerError for
        what is wrong, EOFError for the frame that ends it all."""


class Packets:
    """See ``core.stream.PacketConn``. Ends with its stream: then datagrams are dropped."""

    def __init__(self, edge: Edge, stream: Stream, framing: Framing) -> None:
        """``stream``: what had to be said before the first datagram is said."""
        self._stream = stream
        self._framing = framing
        self._waiting: list[bytes] = []
        self._size = 0
        self._wake = asyncio.Event()
        self._receiver: Receiver | None = None
        self._early: list[tuple[bytes, Address]] = []
        self.closed = False
        self._tasks = [edge.loop.create_task(work) for work in (self._read(), self._write())]

    def send(self, data: Buffer, destination: Address, segment: int = 0) -> None:
        if self.closed:
            return
        for datagram in datagrams(data, segment):
            try:
                frame = self._framing.wrap(datagram, destination)
            except LocalError:
                continue
            if self._size + len(frame) > WAITING:
                break
            self._waiting.append(frame)
            self._size += len(frame)
        self._wake.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    data, self._waiting = b"".join(self._waiting), []
                    self._size = 0
                    await self._stream.write(data)
        except (OSError, GatewayError):
            self._end()

    async def _read(self) -> None:
        kept = b""
        try:
            while data := await self._stream.read():
                kept = self._deliver(kept + data if kept else data)
        except (OSError, GatewayError, EOFError):
            pass
        self._end()

    def _deliver(self, data: bytes) -> bytes:
        """What is left of ``data``, the beginning of a frame. Raises as ``Framing.unwrap``."""
        reader = Reader(data)
        start = 0
        try:
            while reader.left:
                found = self._framing.unwrap(reader)
                start = reader.pos
                if found is not None:
                    self._received(found[1], found[0])
        except Incomplete:
            if len(data) - start > LONGEST:
                raise PeerError("frame too long") from None
        return data[start:]

    def _received(self, data: bytes, peer: Address) -> None:
        if self._receiver is not None:
            self._receiver(data, peer, 0)
        elif len(self._early) < EARLY:
            self._early.append((data, peer))

    def start(self, receiver: Receiver) -> None:
        self._receiver = receiver
        early, self._early = self._early, []
        for data, peer in early:
            receiver(data, peer, 0)

    def _end(self) -> None:
        self.closed = True
        self._waiting.clear()
        self._stream.close()
        # The other of the two; the one that runs ends by itself.
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    def close(self) -> None:
        if not self.closed:
            self._end()
