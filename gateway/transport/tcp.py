"""A Stream over a non-blocking socket, with one optional layer (encryption, framing) in between."""

from __future__ import annotations

import socket

from gateway.core.contracts import Edge
from gateway.core.stream import Buffer, Layer

CHUNK = 65536


class SocketStream:
    """See ``core.stream.Stream`` and ``SocketBacked``. Owns ``sock``; ``layer`` None passes bytes as they are;
    ``pending`` are plain bytes that were read and not consumed."""

    __slots__ = ("_closed", "_edge", "_eof", "layer", "pending", "sock")

    def __init__(self, edge: Edge, sock: socket.socket, layer: Layer | None = None, pending: bytes = b"") -> None:
        self._edge = edge
        self.sock = sock
        self.layer = layer
        self.pending = pending
        self._eof = False
        self._closed = False

    async def read(self, limit: int = CHUNK) -> bytes:
        while not self.pending:
            if self._eof or (self.layer is not None and self.layer.ended):
                return b""
            data = await self._receive()
            if not data:
                self._eof = True
            elif self.layer is None:
                self.pending = data
            else:
                self.pending = bytes(self.layer.decode(data))
        data = self.pending
        if len(data) <= limit:
            self.pending = b""
            return data
        self.pending = data[limit:]
        return data[:limit]

    async def _receive(self) -> bytes:
        while True:
            try:
                return self.sock.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                await self._edge.readable(self.sock)

    async def write(self, data: Buffer) -> None:
        await self._send(data if self.layer is None else self.layer.encode(data))

    async def _send(self, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except (BlockingIOError, InterruptedError):
                # The view may lie in the layer's buffer, which the layer may reuse while we wait.
                view = memoryview(bytes(view))
                await self._edge.writable(self.sock)

    async def write_eof(self) -> None:
        if self.layer is not None:
            await self._send(self.layer.encode_eof())
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the peer has reset it already; reading will tell

    def unread(self, data: bytes) -> None:
        self.pending = data + self.pending

    def detach(self) -> tuple[socket.socket, Layer | None, bytes]:
        self._closed = True
        pending, self.pending = self.pending, b""
        return self.sock, self.layer, pending

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._edge.remove(self.sock.fileno())
            self.sock.close()
