"""Takes flows from inbounds: asks the rules, sniffs and resolves for them, dials, and lets the relay run.

The engine decides; everything here is I/O for it and what follows from its decision.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import pairwise

from gateway.core.account import Tally
from gateway.core.address import IP, Address
from gateway.core.contracts import Outbound, Running, Wiring
from gateway.core.errors import DialError, GatewayError, Rejected
from gateway.core.flow import Findings, Flow, Network
from gateway.core.stream import Buffer, Receiver, Stream
from gateway.kernel.splice import Pipes
from gateway.route.engine import Decision, Engine, Request, ResolveRequest, SniffRequest, Walk
from gateway.route.entry import PROMPT, Burst, Entry, Patience, abort, bare
from gateway.route.flood import Flood
from gateway.route.limit import Limit
from gateway.route.relay import SocketRelay, relay
from gateway.route.running import RunningStream
from gateway.route.session import Sessions
from gateway.route.sniff import NEED_MORE, Sniffed, note, sniff_stream

log = logging.getLogger("gateway.route")

DNS_IDLE = 10.0
"""Seconds that a hijacked DNS connection may be silent."""
DROPPED = 60.0
"""Seconds that a connection whose rule says ``drop`` is held without an answer."""

LASTING = 60.0
"""Seconds after which a flow is one whose ends may die unnoticed."""

Accepted = Callable[[bool], Awaitable[None]]


class Router:
    """See ``core.contracts.Router``. ``engine`` may be replaced at any time: flows that run keep their decision.

    ``close()`` before the loop ends.
    """

    def __init__(self, engine: Engine, wiring: Wiring, limit: Limit | None = None) -> None:
        self.engine = self._refusing = engine
        self._flood = Flood()
        self._wiring = wiring
        self._clock = wiring.edge.loop.time
        self.limit = limit or Limit(self._clock)
        self.certain: Callable[[Flow, Findings], bool] = lambda flow, findings: False
        """Whether no sniff can change where a flow goes; replaced by who has compiled the rules."""
        self.find_neighbor = False
        """Look every flow's device up, for those who list them."""
        self.decided: Callable[[Flow, Findings, Decision], None] = lambda flow, findings, decision: None
        """Hears of each flow what became of it, before it is dialled; of some twice."""
        self.edge = wiring.edge
        self.pipes = Pipes()
        self.patience = Patience(wiring.edge.loop)
        self.burst = Burst(wiring.edge.loop)
        self._streams: set[RunningStream] = set()
        self.tally = Tally()
        """Of flows that have ended."""
        self.refusals = {"reject": 0, "drop": 0}
        """Flows that rules refused, with an answer and without."""
        self._looked = self._clock() - LASTING
        """Flows that began until then have been told to last."""
        self._watch = wiring.edge.loop.call_later(LASTING, self._lasting)
        self.sessions = Sessions(self, wiring)

    # -- decisions, shared with the sessions

    def findings(self, flow: Flow) -> Findings:
        ip, client = flow.destination.ip, flow.source.ip
        if ip is None or client is None:
            return Findings()
        return Findings(learned=self._wiring.resolver.learned(ip, client))

    def owned(self, flow: Flow) -> Flow:
        """With its process, where a socket of this host began it; else with its device, where that is asked for. With
        the name, where its destination is a fake address. Raises DialError for one that stands for nothing."""
        return self._named(self._owned(flow))

    def _named(self, flow: Flow) -> Flow:
        fakes, ip = self._wiring.fakes, flow.destination.ip
        if fakes is None or ip is None or ip not in fakes:
            return flow
        name = fakes.name(ip)
        if not name:
            raise DialError(f"{ip} is a fake address that stands for no name", "resolve")
        return flow._replace(destination=Address(name, flow.destination.port), fake=flow.destination)

    def _owned(self, flow: Flow) -> Flow:
        if flow.process is not None:
            return flow
        process = self._wiring.owners.find(flow.network, flow.source, flow.local or flow.destination)
        if process is not None:
            return flow._replace(process=process)
        source = flow.source.ip
        if not (self.engine.by_device or self.find_neighbor) or source is None:
            return flow
        return flow._replace(device=self._wiring.devices.find(source))

    async def resolve(self, request: ResolveRequest, findings: Findings) -> None:
        """Raises DialError."""
        action = request.action
        found = await self._wiring.resolver.lookup(request.domain, server=action.server, strategy=action.strategy)
        if not found:
            raise DialError(f"{request.domain}: no address", "resolve")
        findings.addresses = tuple(found)

    def chain(self, tag: str, network: Network) -> tuple[str, ...]:
        """``tag`` and, where it is a group, its members down to the one that flows of ``network`` leave through."""
        tags = [tag]
        while (chosen := getattr(self._wiring.outbounds[tags[-1]], "chosen", None)) is not None:
            if not (member := chosen(network)) or member in tags:
                break
            tags.append(member)
        return tuple(tags)

    def outbound(self, flow: Flow, decision: Decision) -> Outbound:
        """Raises DialError where it does not exist or does not carry the flow's network."""
        if decision.outbound not in self._wiring.outbounds:
            raise DialError(f'outbound "{decision.outbound}" does not exist')
        outbound = self._wiring.outbounds[decision.outbound]
        if flow.network not in outbound.networks:
            raise DialError(f"outbound {decision.outbound} does not carry {flow.network}")
        return outbound

    def carrier(self, flow: Flow) -> Outbound | None:
        decision = self.engine.decide(flow, self.findings(flow))
        if decision.action == "reject":
            raise Rejected(f"rule {decision.rule}", drop=self.silent(decision))
        if decision.action != "route" or decision.outbound not in self._wiring.outbounds:
            return None
        return self._wiring.outbounds.leaf(decision.outbound)

    def silent(self, decision: Decision) -> bool:
        """Whether this rejection sends no answer; to be asked once for each, as those that could answer are counted."""
        if decision.method == "drop" or decision.no_drop:
            return decision.method == "drop"
        if self._refusing is not self.engine:
            self._refusing, self._flood = self.engine, Flood()
        return self._flood.drops(decision.rule, self._clock())

    # -- streams

    def route_stream(self, flow: Flow, stream: Stream, accepted: Accepted | None = None) -> None:
        if not self.limit.enter("tcp", flow.source.host):
            abort(stream)
            if accepted is not None:
                self._wiring.edge.loop.create_task(_refuse(accepted))
            return
        running = RunningStream(flow, self._clock(), self._ended)
        self._streams.add(running)
        sock = bare(stream) if accepted is None else None
        if sock is not None:
            Entry(self, running, stream, sock).start()
        else:
            running.task = self.edge.loop.create_task(self._run(running, _Handshake(stream, accepted)))

    def go_on(
        self, running: RunningStream, stream: Stream, walk: Walk, findings: Findings, step: Request | Decision
    ) -> None:
        """In a task, from the ``step`` that an Entry has reached."""
        running.task = self.edge.loop.create_task(self._run(running, _Handshake(stream, None), walk, findings, step))

    async def _run(
        self, running: RunningStream, handshake: _Handshake, walk: Walk | None = None,
        findings: Findings | None = None, step: Request | Decision | None = None,
    ) -> None:  # fmt: skip
        stream = handshake.stream
        try:
            if walk is None or findings is None:
                flow = running.flow = self.owned(running.flow)
                findings = self.findings(flow)
                walk = self.engine.start(flow, findings)
            if await self._serve(
                running, handshake, findings, await self._decide(running.flow, walk, findings, step, handshake)
            ):
                return
            stream.close()
        except (GatewayError, OSError) as error:
            self.failed(running, error)
            await self._reject(handshake, isinstance(error, Rejected) and error.drop)
        except BaseException as error:
            abort(stream)
            if not isinstance(error, asyncio.CancelledError):
                log.exception("%s", _name(running))
        finally:
            running.task = None
            if running.relay is None:
                self._ended(running)

    async def _serve(
        self, running: RunningStream, handshake: _Handshake, findings: Findings, decision: Decision
    ) -> bool:
        """True where a relay has the stream now."""
        flow = running.flow
        running.decision, running.findings = decision, findings
        destination = decision.destination or flow.destination
        if decision.action == "reject":
            raise Rejected(f"rule {decision.rule}", drop=self.silent(decision))
        if decision.action == "hijack-dns":
            await handshake.accept()
            await self._answer(flow, handshake.stream)
            return False
        outbound = self.outbound(flow, decision)
        running.chain = self.chain(decision.outbound, flow.network)
        remote = await _dial(outbound, flow, destination, findings.addresses)
        try:
            await handshake.accept()
        except BaseException:
            remote.close()
            raise
        self.opened(running, findings)
        found = relay(self.edge, self.pipes, handshake.stream, remote, running.done)
        running.relay = found
        if running not in self._streams:  # it was so short
            self._count(running)
        return True

    async def _decide(
        self, flow: Flow, walk: Walk, findings: Findings, step: Request | Decision | None, handshake: _Handshake
    ) -> Decision:
        while not isinstance(step, Decision):
            if isinstance(step, SniffRequest):
                await handshake.accept()
                await _sniff(handshake.stream, step, findings, lambda: self.certain(flow, findings))
            elif step is not None:
                await self.resolve(step, findings)
            step = walk.step()
        self.decided(flow, findings, step)
        return step

    def opened(self, running: RunningStream, findings: Findings) -> None:
        """The relay takes it now."""
        if log.isEnabledFor(logging.INFO):
            log.info("%s to %s%s", _name(running), ">".join(running.chain), _how(findings))

    def refused(self, silently: bool) -> None:
        self.refusals["drop" if silently else "reject"] += 1

    def failed(self, running: RunningStream, error: Exception) -> None:
        if isinstance(error, Rejected):
            self.refused(error.drop)
        if log.isEnabledFor(logging.INFO):
            what = "rejected" if isinstance(error, Rejected) else "failed"
            log.info("%s %s: %s", _name(running), what, error)

    async def _reject(self, handshake: _Handshake, drop: bool) -> None:
        stream = handshake.stream
        try:
            if drop:
                async with asyncio.timeout(DROPPED):
                    while await stream.read():
                        pass
            elif handshake.pending:
                await handshake.refuse()
                stream.close()
                return
        except (OSError, GatewayError, TimeoutError):
            pass
        except BaseException:
            abort(stream)
            raise
        abort(stream)

    async def _answer(self, flow: Flow, stream: Stream) -> None:
        """DNS over TCP (RFC 1035 section 4.2.2): each message behind its length in two bytes."""
        data = b""
        while True:
            while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2]):
                try:
                    async with asyncio.timeout(DNS_IDLE):
                        more = await stream.read()
                except TimeoutError:
                    return
                if not more:
                    return
                data += more
            size = 2 + int.from_bytes(data[:2])
            answer = await self._wiring.resolver.exchange(data[2:size], flow)
            data = data[size:]
            if answer is not None:
                await stream.write(len(answer).to_bytes(2) + answer)

    def _ended(self, running: RunningStream) -> None:
        if running in self._streams:
            self._streams.discard(running)
            self.limit.leave("tcp", running.flow.source.host)
            if running.relay is not None:
                self._count(running)

    def _count(self, running: RunningStream) -> None:
        self.tally.add(running.key, 1, running.up, running.down)

    def carried(self) -> Tally:
        """All that was carried since the start, by what runs and what has ended; a UDP session counts as often as it
        has mappings."""
        found = self.tally.copy()
        for running in self._streams:
            if running.relay is not None:
                found.add(running.key, 1, running.up, running.down)
        for session in self.sessions.running():
            for link in session.links.values():
                found.add(link.key, 1, link.up, link.down)
        return found

    def _lasting(self) -> None:
        """Each flow meets this once, when it is one or two minutes old: most are over by then."""
        before, self._looked = self._looked, self._clock() - LASTING
        for running in self._streams:
            if before < running.since <= self._looked and isinstance(running.relay, SocketRelay):
                running.relay.lasts()
        self._watch = self.edge.loop.call_later(LASTING, self._lasting)

    # -- datagrams

    def route_packet(self, flow: Flow, data: Buffer, reply: Receiver, segment: int = 0) -> None:
        self.sessions.packet(flow, data, reply, segment)

    def close_packets(self, inbound: str, source: Address) -> None:
        self.sessions.end(inbound, source)

    # -- control

    def reconsider(self, changed: Collection[str]) -> list[Flow]:
        """After new rules or outbounds: end the flows that would not go as they go now; what they were. ``changed``:
        outbounds that are not what they were. A connection whose rules are being walked keeps what it finds."""
        ended = self.sessions.reconsider(changed)
        for running in tuple(self._streams):
            if running.decision is None or running.findings is None:
                continue
            again = self.again(running.flow, running.findings, running.decision, running.chain, changed)
            if again is None:
                running.close()
                ended.append(running.flow)
            else:
                running.decision = again
        return ended

    def again(
        self, flow: Flow, findings: Findings, decision: Decision, chain: Sequence[str], changed: Collection[str]
    ) -> Decision | None:  # fmt: skip
        """What the rules say now of a flow that goes through ``chain``; None where that is not where it goes."""
        again = self.engine.decide(flow, findings)
        if (again.action, again.outbound, again.destination) != (
            decision.action, decision.outbound, decision.destination
        ):  # fmt: skip
            return None
        outbounds = self._wiring.outbounds
        for tag, member in pairwise(chain):
            if tag not in outbounds or member not in getattr(outbounds[tag], "members", ()):
                return None
        return None if chain and chain[-1] in changed else again

    def flows(self) -> list[Running]:
        return [*self._streams, *self.sessions.running()]

    def close_flows(self, chosen: Callable[[Running], bool]) -> int:
        ending = [running for running in self.flows() if chosen(running)]
        for running in ending:
            running.close()
        return len(ending)

    async def close(self) -> None:
        """End every flow."""
        tasks = [running.task for running in self._streams if running.task is not None]
        self.close_flows(lambda running: True)
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.sessions.close()
        self._watch.cancel()
        self.patience.close()
        self.pipes.close()


class _Handshake:
    """A client's stream and whether the client still waits for a word about it."""

    __slots__ = ("_accepted", "stream")

    def __init__(self, stream: Stream, accepted: Accepted | None) -> None:
        self.stream = stream
        self._accepted = accepted

    @property
    def pending(self) -> bool:
        return self._accepted is not None

    async def accept(self) -> None:
        accepted, self._accepted = self._accepted, None
        if accepted is not None:
            await accepted(True)

    async def refuse(self) -> None:
        accepted, self._accepted = self._accepted, None
        if accepted is not None:
            await accepted(False)


async def _refuse(accepted: Accepted) -> None:
    try:
        await accepted(False)
    except (OSError, GatewayError):
        pass


async def _dial(outbound: Outbound, flow: Flow, destination: Address, addresses: tuple[IP, ...]) -> Stream:
    """To ``destination``, or to the addresses that a ``resolve`` rule found for it, one after another."""
    if not addresses or destination.ip is not None:
        return await outbound.connect(flow, destination)
    for ip in addresses[:-1]:
        try:
            return await outbound.connect(flow, Address(ip, destination.port))
        except (DialError, OSError) as error:
            log.debug("%s: %s", destination, error)
    return await outbound.connect(flow, Address(addresses[-1], destination.port))


async def _sniff(stream: Stream, request: SniffRequest, findings: Findings, certain: Callable[[], bool]) -> None:
    """Read until the sniffers know, give up, or time is up; the bytes go back in front of the stream. A client that is
    silent at first is waited for only where what it will say matters."""
    names = request.protocols
    more = await _read(stream, min(PROMPT, request.timeout))
    if more is None and certain():
        return
    left = request.timeout if more else request.timeout - PROMPT
    data = more or b""
    found = sniff_stream(data, names) if data else NEED_MORE
    try:
        if found is NEED_MORE and more != b"" and left > 0:
            async with asyncio.timeout(left):
                while found is NEED_MORE and (more := await stream.read()):
                    data += more
                    found = sniff_stream(data, names)
    except TimeoutError:
        pass
    finally:
        if data:
            stream.unread(data)
    if isinstance(found, Sniffed):
        note(findings, found)


async def _read(stream: Stream, patience: float) -> bytes | None:
    """What the client says within ``patience`` seconds, None for nothing."""
    try:
        async with asyncio.timeout(patience):
            return await stream.read()
    except TimeoutError:
        return None


def _name(running: RunningStream) -> str:
    flow = running.flow
    return f"{flow.inbound}: {flow.source} {flow.network} {flow.destination}"


def _how(findings: Findings) -> str:
    return f" ({findings.protocol}{' ' if findings.domain else ''}{findings.domain})" if findings.protocol else ""
