"""HTTP connections that carry DNS queries (RFC 8484): HTTP/2 with many at a time (RFC 9113), HTTP/1.1 with one. See
``dns.pool.Line``.

The id of a query is 0 on the way, so that answers can be kept by caches between (section 4.1).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import NamedTuple

import h11
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from h2.exceptions import ProtocolError

from gateway.core.errors import GatewayError, PeerError
from gateway.core.stream import Stream
from gateway.dns import message
from gateway.dns.pool import Closed, Multiplexed

MIME = "application/dns-message"
CHUNK = 65536

Fields = Sequence[tuple[str, str]]


class Request(NamedTuple):
    """What every query's request has in common. ``headers`` beside those that DNS needs, names in lower case."""

    authority: str
    path: str = "/dns-query"
    get: bool = False
    headers: Fields = ()

    def of(self, query: bytes) -> tuple[str, str, list[tuple[str, str]], bytes]:
        """Method, target, fields, body."""
        body = b"\0\0" + query[2:]
        own = [("accept", MIME)]
        rest = [(name, value) for name, value in self.headers if name not in ("accept", "content-type")]
        if self.get:
            text = base64.urlsafe_b64encode(body).rstrip(b"=").decode()
            return "GET", f"{self.path}{'&' if '?' in self.path else '?'}dns={text}", own + rest, b""
        own += [("content-type", MIME), ("content-length", str(len(body)))]
        return "POST", self.path, own + rest, body


def checked(status: int, body: bytes, query: bytes, server: str) -> bytes:
    """The answer to ``query``, with its id. Raises PeerError."""
    if status != 200:
        raise PeerError(f"dns: {server} answered with HTTP status {status}")
    if not message.answers(body, query):
        raise PeerError(f"dns: {server} answered another query")
    return query[:2] + body[2:]


class Waiting:
    """One stream of HTTP/2."""

    __slots__ = ("body", "future", "status")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.status = 0
        self.body = bytearray()


class H2Line(Multiplexed):
    """HTTP/2."""

    def __init__(self, stream: Stream, request: Request, server: str) -> None:
        super().__init__(stream, server)
        self._request = request
        self._h2 = H2Connection(H2Configuration(client_side=True))
        self._h2.initiate_connection()
        self._waiting: dict[int, Waiting] = {}

    @property
    def room(self) -> int:
        return min(self._h2.remote_settings.max_concurrent_streams, 4096)

    async def _exchange(self, query: bytes) -> bytes:
        number, waiting = self._begin(query)
        try:
            await self._flush()
            await waiting.future
            return checked(waiting.status, bytes(waiting.body), query, self._server)
        except asyncio.CancelledError:
            self._abandon(number)
            raise
        finally:
            del self._waiting[number]

    def _begin(self, query: bytes) -> tuple[int, Waiting]:
        method, target, fields, body = self._request.of(query)
        place = [(":method", method), (":scheme", "https"), (":authority", self._request.authority), (":path", target)]
        try:
            number = self._h2.get_next_available_stream_id()
            self._h2.send_headers(number, [*place, *fields], end_stream=not body)
            if body:
                if self._h2.local_flow_control_window(number) < len(body):
                    self._h2.reset_stream(number, ErrorCodes.CANCEL)
                    raise Closed(f"{self._server} takes no more bytes on this connection")
                step = self._h2.max_outbound_frame_size
                for start in range(0, len(body), step):
                    last = start + step >= len(body)
                    self._h2.send_data(number, body[start : start + step], end_stream=last)
        except (ProtocolError, Closed) as error:
            self.retire()
            raise error if isinstance(error, Closed) else Closed(f"{self._server}: {error}") from error
        waiting = self._waiting[number] = Waiting(self._promise())
        return number, waiting

    def _abandon(self, number: int) -> None:
        if not self.closed:
            try:
                self._h2.reset_stream(number, ErrorCodes.CANCEL)
            except ProtocolError:
                pass  # it has ended meanwhile

    async def _flush(self) -> None:
        await self._write(self._h2.data_to_send)

    async def _read(self) -> None:
        said = "closed the connection"
        try:
            await self._flush()
            while data := await self._stream.read(CHUNK):
                self.heard += 1
                for event in self._h2.receive_data(data):
                    self._happened(event)
                await self._flush()
        except (OSError, GatewayError, ProtocolError, KeyError, ValueError) as error:
            said = str(error)
        self._end(said)

    def _happened(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.retire()
            last = event.last_stream_id or 0
            for number, waiting in tuple(self._waiting.items()):
                if number > last:
                    self._fail(waiting, Closed(f"{self._server} wants another connection"))
            return
        found = self._waiting.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if found is None:
            return
        if isinstance(event, ResponseReceived):
            found.status = int(dict(event.headers or ())[b":status"])
        elif isinstance(event, DataReceived):
            found.body += event.data
            if len(found.body) > message.LARGEST:
                self._fail(found, PeerError(f"dns: {self._server} sent more than a message can have"))
        elif isinstance(event, StreamEnded):
            if not found.future.done():
                found.future.set_result(None)
        elif isinstance(event, StreamReset):
            self._fail(found, Closed(f"{self._server} broke off"))

    @staticmethod
    def _fail(waiting: Waiting, error: Exception) -> None:
        if not waiting.future.done():
            waiting.future.set_exception(error)


class H1Line:
    """HTTP/1.1."""

    room = 1

    def __init__(self, stream: Stream, request: Request, server: str) -> None:
        self._stream = stream
        self._request = request
        self._server = server
        self._h1 = h11.Connection(h11.CLIENT)
        self.busy = 0
        self.heard = 0
        self.closed = False

    async def ask(self, query: bytes) -> bytes:
        self.busy = 1
        try:
            status, body = await self._exchange(query)
            answer = checked(status, body, query, self._server)
            if self._h1.our_state is h11.DONE and self._h1.their_state is h11.DONE and not self.closed:
                self._h1.start_next_cycle()
            else:
                self.close()
            return answer
        except h11.RemoteProtocolError as error:
            self.close()
            # Closed between two requests, or in the middle of one: h11 calls both so.
            raise Closed(f"{self._server}: {error}") from error
        except OSError as error:
            self.close()
            raise Closed(f"{self._server}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        finally:
            self.busy = 0

    async def _exchange(self, query: bytes) -> tuple[int, bytes]:
        method, target, fields, body = self._request.of(query)
        head = h11.Request(method=method, target=target, headers=[("host", self._request.authority), *fields])
        wire = self._h1.send(head) or b""
        if body:
            wire += self._h1.send(h11.Data(data=body)) or b""
        await self._stream.write(wire + (self._h1.send(h11.EndOfMessage()) or b""))
        status, found = 0, bytearray()
        while True:
            event = self._h1.next_event()
            if event is h11.NEED_DATA:
                self._h1.receive_data(await self._stream.read(CHUNK))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                found += event.data
                if len(found) > message.LARGEST:
                    raise PeerError(f"dns: {self._server} sent more than a message can have")
            elif isinstance(event, h11.EndOfMessage):
                return status, bytes(found)
            elif isinstance(event, h11.ConnectionClosed):
                raise Closed(f"{self._server}: closed the connection")

    def retire(self) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True
        self._stream.close()
