"""UDP sessions: one a source, with one mapping for each outbound that its datagrams leave through.

::

    (inbound, source, user) -> Session --- destination -> Route --+-- Link "direct"    PacketConn
                                       --- destination -> Route --+
                                       --- destination -> Route ----- Link "proxy"     PacketConn

A destination is decided once; destinations with the same outbound share its mapping, so that a peer sees one port
whoever else is spoken to, and anybody may answer to it (RFC 4787, endpoint-independent mapping and filtering). With
``udp_connect`` a destination has a mapping of its own, to which it alone may answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Protocol

from gateway.core.address import Address
from gateway.core.contracts import Wiring
from gateway.core.errors import DialError, GatewayError
from gateway.core.flow import Findings, Flow
from gateway.core.stream import Buffer, PacketConn, Receiver
from gateway.route.engine import Decision, SniffRequest
from gateway.route.running import key_of, name_of
from gateway.route.sniff import NEED_MORE, PacketState, Sniffed, note, sniff_packet

if TYPE_CHECKING:
    from gateway.route.router import Router

log = logging.getLogger("gateway.route")

SESSIONS = 16384
"""At the bound new sources are refused until old sessions time out."""
ROUTES = 256
"""Destinations one session remembers; at the bound the oldest is forgotten, and decided anew if it returns."""
HELD = 16
"""Datagrams (or batches) held while a destination is decided or dialled; further ones are dropped."""
SNIFFED = 4
"""Datagrams looked at before a sniffer is given up."""
QUERIES = 1024
"""Hijacked DNS queries at work; further ones are dropped, and the client asks again."""
TIMEOUT = 300.0
"""Seconds that an idle mapping lives where nothing else is said."""
SWEEP = 1.0
"""Seconds between two looks for idle sessions."""

BY_PROTOCOL = {"dns": 10.0, "ntp": 10.0, "stun": 10.0, "quic": 30.0, "dtls": 30.0}
BY_PORT = {53: "dns", 123: "ntp", 3478: "stun", 443: "quic"}


def timeout_of(decision: Decision, protocol: str, port: int, default: float) -> float:
    """Seconds: the rule's, else the protocol's (or what the port stands for), else the inbound's."""
    if decision.udp_timeout:
        return decision.udp_timeout
    return BY_PROTOCOL.get(protocol or BY_PORT.get(port, ""), default)


class HandBack(Protocol):
    """The kernel, to which a UDP flow found to be direct is given back."""

    def hand_back(self, flow: Flow, outbound: str) -> bool:
        """False where it cannot carry it."""

    def forward(self, flow: Flow, data: Buffer, segment: int) -> None:
        """Send on a datagram of ``flow`` that had reached us, as the client's own; lost where that fails."""


Key = tuple[str, Address | None]
"""Of a mapping in its session: the outbound's tag, and ``Link.only``."""


class Link:
    """One mapping of a session. ``back`` turns addresses that we changed into those the client wrote to. ``only``: who
    may answer, None for anybody. ``flow``: the one that it was made for."""

    __slots__ = ("back", "chain", "conn", "down", "fakes", "key", "only", "timeout", "up", "used")

    def __init__(self, conn: PacketConn, chain: tuple[str, ...], flow: Flow, only: Address | None = None) -> None:
        self.conn = conn
        self.chain = chain
        self.key = key_of(chain, flow)
        self.only = only
        self.up = self.down = 0
        self.back: dict[Address, Address] = {}
        self.fakes: dict[int, Address | None] = {}
        """The fake address to which the client writes at a port, None where there are several."""
        self.timeout = 0.0
        self.used = 0.0


class Route:
    """What becomes of datagrams to one destination. While ``held`` is a list it is not known yet."""

    __slots__ = ("arrived", "decision", "findings", "flow", "held", "hijack", "kernel", "link", "target", "task")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.findings: Findings | None = None
        self.decision: Decision | None = None
        self.held: list[tuple[bytes, int]] | None = []
        self.arrived: asyncio.Event | None = None
        self.link: Link | None = None
        self.hijack = False
        self.kernel = False
        """Handed back: what still comes is sent on as the kernel would."""
        self.target: Address | None = None
        self.task: asyncio.Task[None] | None = None


class Session:
    """See ``core.contracts.Running``."""

    __slots__ = ("_closed", "_dialing", "_sessions", "flow", "links", "reply", "routes", "since", "used")

    def __init__(self, sessions: Sessions, flow: Flow, reply: Receiver, now: float) -> None:
        self._sessions = sessions
        self.flow = flow
        self.reply = reply
        self.since = self.used = now
        self.routes: dict[Address, Route] = {}
        self.links: dict[Key, Link] = {}
        self._dialing: dict[str, asyncio.Lock] = {}
        self._closed = (0, 0)
        """Bytes to and from mappings that are closed."""

    @property
    def destinations(self) -> tuple[Address, ...]:
        return tuple(route.flow.destination for route in self.routes.values() if not route.kernel)

    @property
    def _first(self) -> Route | None:
        return next((route for route in self.routes.values() if not route.kernel), None)

    @property
    def name(self) -> str:
        """Of the first destination, as the rule."""
        first = self._first
        return "" if first is None else name_of(first.findings)

    @property
    def rule(self) -> int | None:
        first = self._first
        return None if first is None or first.decision is None else first.decision.rule

    @property
    def chain(self) -> tuple[str, ...]:
        """Of all its mappings."""
        return tuple(tag for link in self.links.values() for tag in link.chain)

    @property
    def up(self) -> int:
        return self._closed[0] + sum(link.up for link in self.links.values())

    @property
    def down(self) -> int:
        return self._closed[1] + sum(link.down for link in self.links.values())

    def packet(self, flow: Flow, data: Buffer, segment: int, now: float) -> None:
        self.used = now
        route = self.routes.get(flow.destination)
        if route is not None and route.link is not None and route.link.conn.closed:
            # What carried it has ended (a SOCKS association): decided and dialled anew.
            self._unlink_closed()
            route = None
        if route is None:
            route = self._new_route(flow, data, segment)
        elif route.held is not None:
            if len(route.held) < HELD:
                route.held.append((bytes(data), segment))
                if route.arrived is not None:
                    route.arrived.set()
            return
        if route.held is None:
            self._forward(route, flow, data, segment, now)

    def _new_route(self, flow: Flow, data: Buffer, segment: int) -> Route:
        if len(self.routes) >= ROUTES:
            self._forget(next(iter(self.routes)))
        route = self.routes[flow.destination] = Route(flow)
        assert route.held is not None
        route.held.append((bytes(data), segment))
        route.task = self._sessions.loop.create_task(self._open(route, flow))
        return route

    def _forget(self, destination: Address) -> None:
        route = self.routes.pop(destination, None)
        if route is None:
            return
        if route.task is not None:
            route.task.cancel()
        if route.link is not None and route.link.only is not None:
            for key, link in list(self.links.items()):
                if link is route.link:
                    self._unlink(key, link)

    def _forward(self, route: Route, flow: Flow, data: Buffer, segment: int, now: float) -> None:
        if route.hijack:
            view = memoryview(data)
            size = segment or max(len(view), 1)
            for start in range(0, len(view), size):
                self._sessions.query(self, flow, bytes(view[start : start + size]))
        elif route.kernel:
            self._sessions.forward(flow, data, segment)
        elif route.link is not None and route.target is not None:
            route.link.up += len(data)
            route.link.used = now
            route.link.conn.send(data, route.target, segment)

    async def _open(self, route: Route, flow: Flow) -> None:
        router, asked = self._sessions.router, flow.destination
        try:
            flow = route.flow = router.owned(flow)
            findings = route.findings = router.findings(flow)
            decision = await self._decide(route, flow, findings)
            await self._settle(route, flow, findings, decision)
            route.decision = decision
        except (GatewayError, OSError) as error:
            log.info("%s: %s udp %s failed: %s", flow.inbound, flow.source, flow.destination, error)
        finally:
            route.task = None
            held, route.held = route.held or [], None
        # Nothing awaits between here and the end: what arrives later comes after what was held.
        now = self._sessions.loop.time()
        for data, segment in held:
            self._forward(route, flow, data, segment, now)
        if route.link is None and not route.hijack and not route.kernel:
            # Refused or failed: decided anew after a while, so that a flood does not dial for every datagram.
            self._sessions.loop.call_later(SWEEP, self._reconsider, asked, route)

    def _reconsider(self, destination: Address, route: Route) -> None:
        if self.routes.get(destination) is route:
            del self.routes[destination]

    async def _decide(self, route: Route, flow: Flow, findings: Findings) -> Decision:
        router = self._sessions.router
        walk = router.engine.start(flow, findings)
        while True:
            step = walk.step()
            if isinstance(step, Decision):
                router.decided(flow, findings, step)
                return step
            if isinstance(step, SniffRequest):
                await self._sniff(route, step, findings)
            else:
                await router.resolve(step, findings)

    async def _sniff(self, route: Route, request: SniffRequest, findings: Findings) -> None:
        names = request.protocols
        state = PacketState()
        looked = 0
        route.arrived = asyncio.Event()
        try:
            async with asyncio.timeout(request.timeout):
                while route.held is not None and looked < SNIFFED:
                    if looked == len(route.held):
                        route.arrived.clear()
                        await route.arrived.wait()
                        continue
                    data, segment = route.held[looked]
                    looked += 1
                    for start in range(0, len(data), segment or max(len(data), 1)):
                        found = sniff_packet(data[start : start + (segment or len(data))], names, state)
                        if found is not NEED_MORE:
                            break
                    else:
                        continue
                    if isinstance(found, Sniffed):
                        note(findings, found)
                    return
        except TimeoutError:
            pass
        finally:
            route.arrived = None

    async def _settle(self, route: Route, flow: Flow, findings: Findings, decision: Decision) -> None:
        if decision.action == "reject":
            # No datagram gets an answer here, but TCP's share of the rule's refusals shrinks.
            self._sessions.router.refused(self._sessions.router.silent(decision))
            log.info("%s: %s udp %s rejected: rule %d", flow.inbound, flow.source, flow.destination, decision.rule)
            return
        if decision.action == "hijack-dns":
            route.hijack = True
            return
        wanted = decision.destination or flow.destination
        if wanted == flow.destination and flow.process is None and self._sessions.hand_back(flow, decision.outbound):
            route.kernel = True
            log.info("%s: %s udp %s to the kernel", flow.inbound, flow.source, flow.destination)
            return
        target = wanted
        if findings.addresses and wanted.domain:
            target = Address(findings.addresses[0], wanted.port)
        link = await self._link(flow, decision, target)
        timeout = timeout_of(decision, findings.protocol, flow.destination.port, self._sessions.timeouts(flow.inbound))
        link.timeout = max(link.timeout, timeout)
        asked = flow.fake or flow.destination
        # What answers from elsewhere is nothing to who knows a fake address alone.
        if target != asked and (flow.fake is not None or not decision.udp_disable_domain_unmapping):
            if len(link.back) >= ROUTES:
                link.back.pop(next(iter(link.back)))
            link.back[target] = asked
        if flow.fake is not None and link.fakes.setdefault(target.port, asked) != asked:
            link.fakes[target.port] = None
        route.target = target
        route.link = link

    async def _link(self, flow: Flow, decision: Decision, target: Address) -> Link:
        """The session's mapping through that outbound; dialled once, however many destinations wait for it."""
        tag = decision.outbound
        router = self._sessions.router
        # A proxy may answer with an address for a name, so only addresses can be told apart.
        only = target if decision.udp_connect and target.ip is not None else None
        key = (tag, only)
        async with self._dialing.setdefault(tag, asyncio.Lock()):
            self._unlink_closed()
            link = self.links.get(key)
            if link is None:
                outbound = router.outbound(flow, decision)
                chain = router.chain(tag, flow.network)
                conn = await outbound.open_packets(flow, target)
                link = self.links[key] = Link(conn, chain, flow, only)
                conn.start(lambda data, peer, segment: self._received(link, data, peer, segment))
                log.info("%s: %s udp %s to %s", flow.inbound, flow.source, flow.destination, ">".join(chain))
            link.used = self._sessions.loop.time()
            return link

    def _received(self, link: Link, data: Buffer, peer: Address, segment: int) -> None:
        if link.only is not None and peer != link.only:
            return
        link.down += len(data)
        link.used = self.used = self._sessions.loop.time()
        self.reply(data, (link.back.get(peer) or self._unnamed(link, peer)) if link.back else peer, segment)

    def _unnamed(self, link: Link, peer: Address) -> Address:
        """Whom the client takes ``peer`` for: a proxy may answer with the address of a name that it was told."""
        if peer.ip is None or peer in self.routes:
            return peer
        return link.fakes.get(peer.port) or peer

    def expire(self, now: float) -> bool:
        """Close what is idle, and what has ended; True where nothing is left."""
        self._unlink_closed()
        for key, link in list(self.links.items()):
            if now - link.used >= link.timeout:
                self._unlink(key, link)
        busy = any(route.task is not None for route in self.routes.values())
        # Without a mapping (refused, hijacked) a session is only what it remembers.
        return not self.links and not busy and now - self.used >= BY_PROTOCOL["dns"]

    def _unlink_closed(self) -> None:
        for key, link in list(self.links.items()):
            if link.conn.closed:
                self._unlink(key, link)

    def _unlink(self, key: Key, link: Link) -> None:
        del self.links[key]
        link.conn.close()
        self._closed = self._closed[0] + link.up, self._closed[1] + link.down
        self._sessions.router.tally.add(link.key, 1, link.up, link.down)
        for destination in [one for one, route in self.routes.items() if route.link is link]:
            del self.routes[destination]

    def reconsider(self, changed: Collection[str]) -> list[Flow]:
        """See ``Router.reconsider``. What was handed back is the kernel's."""
        router = self._sessions.router
        ended: list[Flow] = []
        for destination, route in list(self.routes.items()):
            if route.decision is None or route.findings is None or route.kernel:
                continue
            chain = route.link.chain if route.link is not None else ()
            again = router.again(route.flow, route.findings, route.decision, chain, changed)
            if again is None:
                self._forget(destination)
                ended.append(route.flow)
        used = {id(route.link) for route in self.routes.values()}
        for key, link in list(self.links.items()):
            if id(link) not in used and ended:
                self._unlink(key, link)
        return ended

    def release(self) -> None:
        for destination in list(self.routes):
            self._forget(destination)
        for key, link in list(self.links.items()):
            self._unlink(key, link)

    def close(self) -> None:
        self._sessions.remove(self)


class Sessions:
    """All UDP sessions of a router."""

    def __init__(self, router: Router, wiring: Wiring) -> None:
        self.router = router
        self.loop = wiring.edge.loop
        self._wiring = wiring
        self._sessions: dict[tuple[str, Address, str], Session] = {}
        self._queries: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._inbounds: dict[str, float] = {}
        self.kernel: HandBack | None = None
        """Where flows that a sniff found to be direct may go home to."""

    def set_timeout(self, inbound: str, seconds: float) -> None:
        """``udp_timeout`` of an inbound."""
        self._inbounds[inbound] = seconds

    def timeouts(self, inbound: str) -> float:
        return self._inbounds.get(inbound, TIMEOUT)

    def packet(self, flow: Flow, data: Buffer, reply: Receiver, segment: int) -> None:
        key = (flow.inbound, flow.source, flow.user)
        now = self.loop.time()
        session = self._sessions.get(key)
        if session is None:
            if len(self._sessions) >= SESSIONS or not self.router.limit.enter("udp", flow.source.host):
                return
            session = self._sessions[key] = Session(self, flow, reply, now)
            if self._timer is None:
                self._timer = self.loop.call_later(SWEEP, self._sweep)
        session.reply = reply
        session.packet(flow, data, segment, now)

    def hand_back(self, flow: Flow, outbound: str) -> bool:
        """Whether the kernel carries ``flow`` from now on."""
        return self.kernel is not None and self.kernel.hand_back(flow, outbound)

    def forward(self, flow: Flow, data: Buffer, segment: int) -> None:
        if self.kernel is not None:
            self.kernel.forward(flow, data, segment)

    def flows(self) -> list[Flow]:
        return [session.flow for session in self._sessions.values()]

    def reconsider(self, changed: Collection[str]) -> list[Flow]:
        return [flow for session in tuple(self._sessions.values()) for flow in session.reconsider(changed)]

    def query(self, session: Session, flow: Flow, data: bytes) -> None:
        if (answer := self._wiring.resolver.hit(data, flow)) is not None:
            session.reply(answer, flow.destination, 0)
        elif len(self._queries) < QUERIES:
            task = self.loop.create_task(self._answer(session, flow, data))
            self._queries.add(task)
            task.add_done_callback(self._queries.discard)

    async def _answer(self, session: Session, flow: Flow, data: bytes) -> None:
        try:
            answer = await self._wiring.resolver.exchange(data, flow)
        except (DialError, OSError) as error:
            log.info("%s: dns: %s", flow.source, error)
            return
        if answer is not None:
            session.reply(answer, flow.destination, 0)

    def _sweep(self) -> None:
        self._timer = None
        now = self.loop.time()
        for session in [session for session in self._sessions.values() if session.expire(now)]:
            self.remove(session)
        if self._sessions:
            self._timer = self.loop.call_later(SWEEP, self._sweep)

    def remove(self, session: Session) -> None:
        flow = session.flow
        if self._sessions.pop((flow.inbound, flow.source, flow.user), None) is not None:
            self.router.limit.leave("udp", flow.source.host)
            session.release()

    def end(self, inbound: str, source: Address) -> None:
        for session in [
            one for one in self._sessions.values() if (one.flow.inbound, one.flow.source) == (inbound, source)
        ]:
            self.remove(session)

    def running(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for session in tuple(self._sessions.values()):
            self.remove(session)
        for task in tuple(self._queries):
            task.cancel()
        await asyncio.gather(*self._queries, return_exceptions=True)
