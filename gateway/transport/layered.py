"""A layer put on a stream that exists already: on its socket where it has one, else on its reads and writes."""

from __future__ import annotations

from gateway.core.contracts import Edge
from gateway.core.stream import Buffer, Layer, SocketBacked, Stream
from gateway.transport.tcp import CHUNK, SocketStream


class Stack:
    """Two layers as one; ``outer`` is next to the payload. See ``core.stream.Layer``."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, inner: Layer, outer: Layer) -> None:
        self._inner = inner
        self._outer = outer

    @property
    def ended(self) -> bool:
        return self._outer.ended or self._inner.ended

    def encode(self, data: Buffer) -> Buffer:
        return self._inner.encode(self._outer.encode(data))

    def decode(self, data: Buffer) -> Buffer:
        return self._outer.decode(self._inner.decode(data))

    def encode_eof(self) -> Buffer:
        end = self._outer.encode_eof()
        head = bytes(self._inner.encode(end)) if len(end) else b""
        return head + self._inner.encode_eof()


class LayeredStream:
    """A layer over a stream without a socket. See ``core.stream.Stream``."""

    def __init__(self, inner: Stream, layer: Layer) -> None:
        self._inner = inner
        self._layer = layer
        self._pending = b""

    async def read(self, limit: int = CHUNK) -> bytes:
        while not self._pending:
            if self._layer.ended:
                return b""
            data = await self._inner.read()
            if not data:
                return b""
            self._pending = bytes(self._layer.decode(data))
        data, self._pending = self._pending[:limit], self._pending[limit:]
        return data

    async def write(self, data: Buffer) -> None:
        await self._inner.write(self._layer.encode(data))

    async def write_eof(self) -> None:
        end = self._layer.encode_eof()
        if len(end):
            await self._inner.write(end)
        await self._inner.write_eof()

    def unread(self, data: bytes) -> None:
        self._pending = data + self._pending

    def close(self) -> None:
        self._inner.close()


def add_layer(edge: Edge, stream: Stream, layer: Layer) -> Stream:
    """``stream`` with ``layer`` on it; ``stream`` itself is not to be used afterwards. Raises what ``layer.decode``
    raises where bytes had been read already."""
    if not isinstance(stream, SocketBacked):
        return LayeredStream(stream, layer)
    sock, inner, pending = stream.detach()
    plain = b""
    try:
        if pending:
            plain = bytes(layer.decode(pending))
    except Exception:
        sock.close()
        raise
    return SocketStream(edge, sock, layer if inner is None else Stack(inner, layer), plain)
