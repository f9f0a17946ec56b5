"""The first steps of a TCP flow, taken from inside the edge and without a task: read, sniff, dial, hand to the relay.

::

    walk the rules ── sniff ──> recv, wait on the edge where nothing is there yet ──> walk on
                   └─ route ──> begin: a socket that connects ── first bytes, in a burst ──> relay

Half of what a short flow costs userspace was its task (measured). Only what sniffing and one connect(2) settle goes
this way. Everything else (a name to resolve, a handshake, a group, a rejection, DNS) goes on in a task of the router,
from the step that was reached.
"""

from __future__ import annotations

import logging
import os
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from socket import SO_ERROR, SOL_SOCKET, socket
from typing import TYPE_CHECKING

from gateway.core.contracts import begins
from gateway.core.errors import DialError, GatewayError
from gateway.core.flow import Findings
from gateway.core.stream import Stream
from gateway.kernel.edge import HUP, IN, OUT, RDHUP
from gateway.route.engine import Decision, ResolveRequest, SniffRequest, Walk
from gateway.route.relay import SocketRelay, backed, reset
from gateway.route.running import RunningStream
from gateway.route.sniff import NEED_MORE, Sniffed, note, sniff_stream

if TYPE_CHECKING:
    from gateway.route.router import Router

log = logging.getLogger("gateway.route")

_HEARD = IN | RDHUP
CHUNK = 4096
"""Bytes read at a time: more than the first words of almost every client."""
PROMPT = 0.03
"""Seconds after which a client counts as one that waits for the server's first word."""


def bare(stream: Stream) -> socket | None:
    """The socket of a stream that is nothing else: no layer, and nothing was read from it yet."""
    if getattr(stream, "layer", stream) is None and not getattr(stream, "pending", stream):
        sock: socket | None = getattr(stream, "sock", None)
        return sock
    return None


def abort(stream: Stream) -> None:
    """Close; a TCP client sees a reset, as from a closed port."""
    sock = getattr(stream, "sock", None)
    if sock is not None and backed(stream) and sock.fileno() >= 0:
        stream.detach()
        reset(sock)
    else:
        stream.close()


class Patience:
    """Calls ``prompted`` of each entry ``PROMPT`` seconds after it was added, with one timer for all of them: most are
    gone by then, and a timer of its own would cost each of them more than its rules."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[Entry, float] = {}
        self._timer: TimerHandle | None = None

    def add(self, entry: Entry) -> None:
        self._waiting[entry] = self._loop.time() + PROMPT
        if self._timer is None:
            self._timer = self._loop.call_later(PROMPT, self._due)

    def remove(self, entry: Entry) -> None:
        """Idempotent."""
        self._waiting.pop(entry, None)

    def _due(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._waiting:
            entry, when = next(iter(self._waiting.items()))
            if when > now:
                self._timer = self._loop.call_later(when - now, self._due)
                return
            del self._waiting[entry]
            entry.prompted()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._waiting.clear()


class Burst:
    """Sends the first bytes of all flows that were dialled in one turn, one right after another: who is woken by the
    first is still awake for the others. Waking an idle processor took a sixth of what a short flow costs (measured)."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        if not self._entries:
            self._loop.call_soon(self._send)
        self._entries.append(entry)

    def _send(self) -> None:
        entries, self._entries = self._entries, []
        for entry in entries:
            entry.speak()


class Entry:
    """One flow on its way in; owns ``stream``, whose bare socket is ``sock``, until the relay or a task has it."""

    __slots__ = (
        "_data", "_findings", "_names", "_patience", "_remote", "_request", "_router", "_running", "_sock", "_stream",
        "_timer", "_walk", "_watching",
    )  # fmt: skip

    _walk: Walk
    _findings: Findings
    _request: SniffRequest
    _patience: float

    def __init__(self, router: Router, running: RunningStream, stream: Stream, sock: socket) -> None:
        self._router = router
        self._running = running
        self._stream = stream
        self._sock = sock
        self._data = b""
        self._names: frozenset[str] = frozenset()
        self._remote: socket | None = None
        self._timer: TimerHandle | None = None
        self._watching = False

    def start(self) -> None:
        """Returns at once, with the flow perhaps over."""
        running, router = self._running, self._router
        running.entry = self
        try:
            flow = running.flow = router.owned(running.flow)
            self._findings = router.findings(flow)
            self._walk = router.engine.start(flow, self._findings)
            self._go()
        except Exception as error:
            self._fail(error)

    def _go(self) -> None:
        """Through the rules until something has to be waited for."""
        while True:
            step = self._walk.step()
            if not isinstance(step, SniffRequest):
                break
            self._names = step.protocols
            if not (self._data and self._told()) and not self._read():
                self._request = step
                self._listen()
                return
        if isinstance(step, Decision) and step.action == "route":
            self._dial(step)
        else:
            self._leave(step)

    # -- sniffing

    def _read(self) -> bool:
        """Take what the client has sent; False where the sniffers want more and more may come."""
        recv = self._sock.recv
        while True:
            try:
                more = recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return False
            if not more:
                return True
            self._data = self._data + more if self._data else more
            if self._told():
                return True

    def _told(self) -> bool:
        found = sniff_stream(self._data, self._names)
        if found is NEED_MORE:
            return False
        if isinstance(found, Sniffed):
            note(self._findings, found)
        return True

    def _listen(self) -> None:
        if not self._watching:
            self._router.edge.add(self._sock.fileno(), _HEARD, self._readable)
            self._watching = True
        if self._data:
            self._wait(self._request.timeout, self._silent)
        else:
            self._router.patience.add(self)

    def _wait(self, seconds: float, late: Callable[[], None]) -> None:
        self._timer = self._router.edge.loop.call_later(seconds, late)

    def prompted(self) -> None:
        """The client has said nothing so far. It is waited for only where what it will say matters."""
        try:
            left = self._request.timeout - PROMPT
            if left <= 0 or self._router.certain(self._running.flow, self._findings):
                self._go()
            else:
                self._wait(left, self._silent)
        except Exception as error:
            self._fail(error)

    def _readable(self, events: int) -> None:
        try:
            if self._read():
                self._rest()
                self._go()
            elif self._timer is None:
                # It has begun to speak: now its time is that of the rule.
                self._router.patience.remove(self)
                self._wait(self._request.timeout, self._silent)
        except Exception as error:
            self._fail(error)

    def _silent(self) -> None:
        try:
            self._rest()
            self._go()
        except Exception as error:
            self._fail(error)

    def _rest(self) -> None:
        """Wait for nothing; the client's socket stays watched."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        else:
            self._router.patience.remove(self)

    # -- the way out

    def _dial(self, decision: Decision) -> None:
        router, running = self._router, self._running
        router.decided(running.flow, self._findings, decision)
        outbound = router.outbound(running.flow, decision)
        begun = None
        if begins(outbound):
            begun = outbound.begin(decision.destination or running.flow.destination, bool(self._data))
        if begun is None:
            self._leave(decision)
            return
        running.decision, running.findings, running.chain = (
            decision,
            self._findings,
            router.chain(decision.outbound, "tcp"),
        )
        self._remote, self._patience = begun
        if self._data:
            router.burst.add(self)
        else:
            self._connecting()

    def speak(self) -> None:
        """The first bytes, where the far end has answered inside connect(2)."""
        remote = self._remote
        if remote is None:
            return  # closed meanwhile
        try:
            try:
                sent = remote.send(self._data)
            except (BlockingIOError, InterruptedError):
                self._connecting()
            else:
                self._relay(sent, False)
        except Exception as error:
            self._fail(error)

    def _connecting(self) -> None:
        """The far end takes its time."""
        edge, remote = self._router.edge, self._remote
        assert remote is not None
        if self._watching:
            edge.remove(self._sock.fileno())
            self._watching = False
        if self._patience:
            self._wait(self._patience, self._unanswered)
        edge.add(remote.fileno(), OUT, self._writable)

    def _writable(self, events: int) -> None:
        remote = self._remote
        assert remote is not None
        try:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if events & HUP and (error := remote.getsockopt(SOL_SOCKET, SO_ERROR)):
                raise OSError(error, os.strerror(error))
            self._relay(0, True)
        except Exception as error:
            self._fail(error)

    def _unanswered(self) -> None:
        self._fail(DialError(f"{self._running.flow.destination}: no answer in time"))

    def _relay(self, sent: int, watched: bool) -> None:
        router, running, remote = self._router, self._running, self._remote
        assert remote is not None
        router.opened(running, self._findings)
        self._remote = None
        running.entry = None
        assert backed(self._stream)
        client = self._stream.detach()[0]
        found = SocketRelay(router.edge, router.pipes, client, None, remote, None, running.done)
        running.relay = found
        found.start(self._data, sent=sent, watched=(_HEARD if self._watching else -1, OUT if watched else -1))

    def _leave(self, step: Decision | ResolveRequest) -> None:
        """To a task."""
        if self._watching:
            self._router.edge.remove(self._sock.fileno())
            self._watching = False
        if self._data:
            self._stream.unread(self._data)
        self._running.entry = None
        self._router.go_on(self._running, self._stream, self._walk, self._findings, step)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, GatewayError | OSError):
            log.error("%s", self._running.flow, exc_info=error)
        self._router.failed(self._running, error)
        self.close()

    def close(self) -> None:
        """End the flow: the client sees a reset."""
        self._rest()
        self._running.entry = None
        remote, self._remote = self._remote, None
        if remote is not None:
            self._router.edge.remove(remote.fileno())
            remote.close()
        if self._watching:
            self._router.edge.remove(self._sock.fileno())
        abort(self._stream)
        self._running.done(None)
