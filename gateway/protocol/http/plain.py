"""Plain requests through the proxy: one after another on the client's connection, each to where its URL says.

A target gets its own flow: one end of a socket pair goes to the router as if a client had connected. It is kept for the
next request as long as that goes to the same place and the server keeps its connection.
"""

from __future__ import annotations

import asyncio
import socket

import h11

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.flow import Flow
from gateway.protocol.http import codec
from gateway.transport.tcp import SocketStream

_CHUNK = 65536


class Exchange:
    """The plain requests of one client connection."""

    def __init__(self, stream: SocketStream, client: h11.Connection, flow: Flow, wiring: Wiring) -> None:
        self._stream = stream
        self._client = client
        self._flow = flow
        self._wiring = wiring
        self._upstream: SocketStream | None = None
        self._server = h11.Connection(h11.CLIENT)
        self._place: tuple[Address, str] | None = None

    async def run(self, request: h11.Request, address: Address, path: bytes, user: str) -> bool:
        """One request and its answer. False: the client's connection is to be closed."""
        if self._place != (address, user) or self._server.our_state is not h11.IDLE:
            self.close()
            if not await self._open(address, user):
                await self._stream.write(codec.BAD_GATEWAY)
                return False
        fields = [(name, value) for name, value in codec.end_to_end(request.headers) if name != b"host"]
        head = h11.Request(method=request.method, target=path, headers=[(b"Host", codec.bracket(address)), *fields])
        answered = asyncio.ensure_future(self._answer())
        sending = asyncio.ensure_future(self._send(head))
        try:
            # A server may answer before it has read the whole body; then the rest of the body is of no use.
            await asyncio.wait((answered, sending), return_when=asyncio.FIRST_COMPLETED)
            if not answered.done():
                await sending
            await answered
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            if self._client.our_state is h11.SEND_RESPONSE:
                await self._stream.write(codec.BAD_GATEWAY)
            return False
        finally:
            sending.cancel()
            answered.cancel()
            await asyncio.gather(sending, answered, return_exceptions=True)
        if self._server.our_state is h11.DONE and self._server.their_state is h11.DONE:
            self._server.start_next_cycle()
        if self._client.our_state is not h11.DONE or self._client.their_state is not h11.DONE:
            return False
        self._client.start_next_cycle()
        return True

    async def _open(self, address: Address, user: str) -> bool:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._upstream = SocketStream(self._wiring.edge, ours)
        self._server = h11.Connection(h11.CLIENT)
        self._place = (address, user)
        connected: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def accepted(done: bool) -> None:
            if not connected.done():
                connected.set_result(done)

        flow = self._flow._replace(destination=address, user=user)
        self._wiring.router.route_stream(flow, SocketStream(self._wiring.edge, theirs), accepted)
        return await connected

    async def _send(self, head: h11.Request) -> None:
        assert self._upstream is not None
        await self._upstream.write(self._server.send(head) or b"")
        while True:
            event = self._client.next_event()
            if event is h11.NEED_DATA:
                if self._client.they_are_waiting_for_100_continue and self._client.our_state is not h11.SEND_BODY:
                    await self._wait_continue()
                self._client.receive_data(await self._stream.read())
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                await self._upstream.write(self._server.send(event) or b"")
                if isinstance(event, h11.EndOfMessage):
                    return
            else:
                return

    async def _wait_continue(self) -> None:
        """The client waits for 100; so that a server of HTTP/1.0 does not stop both, it is told to go on."""
        await self._stream.write(self._client.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")

    async def _answer(self) -> None:
        assert self._upstream is not None
        while True:
            event = self._server.next_event()
            if event is h11.NEED_DATA:
                self._server.receive_data(await self._upstream.read(_CHUNK))
                continue
            out: bytes | None = b""
            if isinstance(event, h11.InformationalResponse):
                if event.status_code != 100:
                    out = self._client.send(self._stripped(event))
            elif isinstance(event, h11.Response):
                out = self._client.send(self._stripped(event))
            elif isinstance(event, h11.Data | h11.EndOfMessage):
                out = self._client.send(event)
            else:
                raise h11.RemoteProtocolError("server closed before its answer")
            if out:
                await self._stream.write(out)
            if isinstance(event, h11.EndOfMessage):
                return

    @staticmethod
    def _stripped(event: h11.Response | h11.InformationalResponse) -> h11.Response | h11.InformationalResponse:
        fields = codec.end_to_end(event.headers)
        return type(event)(status_code=event.status_code, reason=event.reason, headers=fields)

    def close(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None
        self._place = None
