"""From a question to its answer: cache, rules, servers; and what the answers taught.

The cache is asked before the rules where no rule asks who the client is; else the rules come first, and an answer is
shared only between questions that the rules treat alike. The same question asked twice at a time goes out once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from ipaddress import ip_address
from typing import Protocol

from gateway.core.address import IP
from gateway.core.contracts import LearnedSink, Strategy, Wiring
from gateway.core.errors import DialError, GatewayError, PeerError, Rejected
from gateway.core.flow import Flow
from gateway.dns import message
from gateway.dns.cache import Cache, Key, key_of
from gateway.dns.message import Question
from gateway.dns.options import DNSConfig
from gateway.dns.policy import Policy
from gateway.dns.ready import Ready
from gateway.dns.reverse import Reverse
from gateway.dns.rule import Plan, Reject, Rules, Step, accepts
from gateway.dns.server import local
from gateway.route.match import Sets, Subject
from gateway.route.options import check_tags

log = logging.getLogger("gateway.dns")

TIMEOUT = 10.0
"""Seconds for one question, all its servers together."""
PENDING = 4096
"""Questions that wait for servers; further ones fail at once."""
NOTIMP = 4
NONE: frozenset[str] = frozenset()
OURS = "ours"
_NOT_FOR: dict[Strategy, int] = {"ipv4_only": message.AAAA, "ipv6_only": message.A}

# Servers that are being asked, outermost first: a server whose own name resolves through itself ends here.
_asking: ContextVar[tuple[str, ...]] = ContextVar("asking", default=())


class Server(Protocol):
    async def exchange(self, query: bytes) -> bytes: ...

    async def close(self) -> None: ...


class Router:
    """See ``core.contracts.Resolver``. ``servers`` by tag; ``sets`` are the rule sets; ``sink`` hears of every address
    before the answer is given out. Raises ConfigError for an unknown rule set."""

    def __init__(
        self, config: DNSConfig, servers: Mapping[str, Server], wiring: Wiring, sets: Sets | None = None,
        sink: LearnedSink | None = None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        for rule in config.rules:
            check_tags(rule.match, sets or {}, rule.path)
        self._config = config
        self._wiring = wiring
        self._servers = dict(servers)
        self._fakes = frozenset(tag for tag, server in servers.items() if getattr(server, "fake", False))
        """Servers that make addresses up: for clients alone, and never kept."""
        if not config.final:
            self._servers[""] = local.Server("", local.Options(), wiring)
        self._rules = Rules(config.rules, config.final, config.strategy, sets)
        self._apart = self._rules.by_client or config.independent_cache
        self._cache = None if config.disable_cache else Cache(
            config.cache_capacity, disable_expire=config.disable_expire
        )  # fmt: skip
        self._pending: dict[Key, asyncio.Task[bytes]] = {}
        self._tasks: set[asyncio.Task[bytes]] = set()
        self._reverse = Reverse() if config.reverse_mapping or sink is not None else None
        self._sink = sink
        self._policy = Policy()
        self._clock = clock
        self.ready = Ready(clock)
        """Holds nothing where an answer depends on who asks. ``hit`` asks it first; who has no Flow yet may himself."""
        self.ready.reverse = self._reverse

    def teach(self, sink: LearnedSink | None) -> None:
        """From now on ``sink`` hears of addresses; None ends it (steering stopped)."""
        self._sink = sink
        if sink is not None and self._reverse is None:
            self._reverse = self.ready.reverse = Reverse()
        self.clear()  # what the cache has was told to nobody

    def forget(self) -> None:
        """Names are to be learned no more: what addresses were called goes too, but for ``reverse_mapping``."""
        self.teach(None)
        if not self._config.reverse_mapping:
            self._reverse = self.ready.reverse = None

    def obey(self, policy: Policy) -> None:
        """From now on clients are answered by it too."""
        if policy != self._policy:
            self._policy = policy
            self.clear()

    @property
    def sink(self) -> LearnedSink | None:
        return self._sink

    def succeed(self, before: Router) -> None:
        """Go on where ``before`` stood: whom it taught, and the names it gave out."""
        self._sink, self._policy = before._sink, before._policy
        if before._reverse is not None and (self._reverse is not None or self._sink is not None):
            self._reverse = self.ready.reverse = before._reverse

    def hit(self, query: bytes, flow: Flow) -> bytes | None:
        """The answer to a client's query where the cache has it. Never waits, never raises."""
        now, ip = self._clock(), flow.source.ip
        if ip is not None and (known := self.ready.get(ip.packed, query[2:], now)) is not None:
            return query[:2] + known
        key = key_of(query)
        if self._cache is None or key is None:
            return None
        share: object = None
        if self._apart:
            try:
                share = self._plan(message.question(query), flow)[1]
            except PeerError:
                return None
        entry = self._cache.get((share, key), now)
        if entry is None or self._policy.holds(entry.name):
            return None  # (we may have asked for ourselves)
        if (entry.addresses or entry.targets) and self._reverse is not None:
            # By its age: the TTL of an answer that is kept for ever stands still at its end.
            told = (ip, entry.age(now))
            if entry.told != told or not self._reverse.told(entry.name, ip, entry.addresses):
                try:
                    self._teach(message.Lesson(entry.name, entry.addresses, entry.targets), flow, entry.left(now), now)
                except PeerError:
                    return None
                entry.told = told
        answer = entry.answer(query, now)
        if entry.size > entry.limit:
            return message.truncate(answer, entry.limit) if flow.network == "udp" else answer
        if not self._apart and ip is not None:
            found = entry.addresses if self._reverse is not None else ()
            self.ready.keep(ip, query, answer, entry.due(now), entry.name, found)
        return answer

    async def exchange(self, query: bytes, flow: Flow) -> bytes | None:
        try:
            word = message.flags(query)
            if word & message.QR:
                return None  # answering an answer could go on for ever
            if word & 0x7800:
                return message.reply(query, NOTIMP)
            asked = message.question(query)
            limit = message.payload_size(query)
            query = message.plain(query)
        except PeerError:
            return message.reply(query, message.FORMERR) if len(query) >= message.HEADER else None
        if (told := self._policy.answer(query, asked.name) or self.hit(query, flow)) is not None:
            return told
        try:
            answer = fit(await self._resolve(query, asked, flow), query, asked)
            self._learn(flow, answer)
            return message.truncate(answer, limit) if flow.network == "udp" else answer
        except Rejected as error:
            return None if error.drop else message.reply(query, message.REFUSED)
        except (GatewayError, OSError) as error:
            log.info("%s: %s type %d: %s", flow.source, asked.name, asked.type, error)
            return message.reply(query, message.SERVFAIL)

    async def lookup(self, domain: str, *, server: str = "", strategy: Strategy = "") -> list[IP]:
        try:
            return [ip_address(domain)]
        except ValueError:
            pass
        wanted = strategy or self._config.strategy
        kinds = [kind for kind in (message.A, message.AAAA) if _NOT_FOR.get(wanted) != kind]
        if wanted == "prefer_ipv6":
            kinds.reverse()
        tries = await asyncio.gather(
            *(self._addresses(domain, kind, server, strategy) for kind in kinds), return_exceptions=True
        )
        found: list[IP] = []
        failure: BaseException | None = None
        for one in tries:
            if isinstance(one, BaseException):
                if not isinstance(one, GatewayError | OSError):
                    raise one
                failure = one
            else:
                found += one
        if not found:
            raise DialError(f"{domain}: {failure or 'no address'}", "resolve") from failure
        return found

    def learned(self, address: IP, client: IP) -> tuple[str, ...]:
        told = () if self._reverse is None else self._reverse.names(address, client, self._clock())
        if self._sink is None:
            return told
        # The kernel remembers longer, as programs do; what it goes by is what a flow is called.
        return (*told, *(name for name in self._sink.owners(address, client) if name not in told))

    def clear(self) -> None:
        """Forget all answers (the uplink has changed, so may have what names mean)."""
        self.ready.clear()
        if self._cache is not None:
            self._cache.clear()

    async def close(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers.values():
            await server.close()

    async def _addresses(self, domain: str, kind: int, server: str, strategy: Strategy) -> list[IP]:
        query = message.query(domain, kind)
        answer = await self._resolve(query, message.question(query), None, server, strategy)
        code = message.rcode(answer)
        if code not in (message.NOERROR, message.NXDOMAIN):
            raise DialError(f"server answered with code {code}", "resolve")
        return [ip for ip, _ in message.addresses(answer)]

    def _plan(self, asked: Question, flow: Flow | None) -> tuple[Plan, object, Subject]:
        """What to try, and what questions must have in common beside themselves to share an answer."""
        if self._rules.by_device and flow is not None and flow.device is None and flow.source.ip is not None:
            flow = flow._replace(device=self._wiring.devices.find(flow.source.ip))
        subject = self._rules.subject(asked, flow)
        plan = self._rules.plan(subject, self._fakes if flow is None else NONE)
        if not self._apart:
            # What we ask for ourselves may be what a client is not to be told.
            return plan, OURS if flow is None and self._fakes else None, subject
        # Which rule it was is all one, unless the rule judges the answer.
        share: tuple[object, ...] = tuple(
            step.method if isinstance(step, Reject) else step if step.filter else step._replace(rule=-1)
            for step in plan
        )  # fmt: skip
        if self._rules.by_client and any(isinstance(step, Step) and step.filter for step in plan):
            # The filter may ask about the client too.
            share = (*share, flow and (flow.network, flow.inbound, flow.source, flow.user, flow.process, flow.device))
        return plan, share, subject

    async def _resolve(
        self, query: bytes, asked: Question, flow: Flow | None, server: str = "", strategy: Strategy = ""
    ) -> bytes:
        """Raises Rejected, DialError, PeerError, OSError. The answer may have another query's id and spelling."""
        if server:
            if server not in self._servers or server in self._fakes:
                what = "makes its addresses up" if server in self._fakes else "does not exist"
                raise DialError(f'DNS server "{server}" {what}', "resolve")
            plan: Plan = (Step(-1, server, strategy or self._config.strategy),)
            share: object = plan
            subject = self._rules.subject(asked, None)
        else:
            plan, share, subject = self._plan(asked, flow)
        kept = key_of(query)
        key = (share, kept if kept is not None else query[2:])
        if self._cache is not None and kept is not None and (entry := self._cache.get(key, now := self._clock())):
            return entry.answer(query, now)
        task = self._pending.get(key)
        # A question of a server's own that comes back to itself must not wait for itself.
        if task is None or _asking.get():
            if len(self._tasks) >= PENDING:
                raise DialError(f"{PENDING} questions wait already", "resolve")
            task = asyncio.ensure_future(self._run(plan, subject, query, asked, key, kept is not None))
            self._tasks.add(task)
            self._pending.setdefault(key, task)
            task.add_done_callback(partial(self._done, key))
        return await asyncio.shield(task)

    def _done(self, key: Key, task: asyncio.Task[bytes]) -> None:
        self._tasks.discard(task)
        if self._pending.get(key) is task:
            del self._pending[key]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _run(
        self, plan: Plan, subject: Subject, query: bytes, asked: Question, key: Key, keep: bool
    ) -> bytes:  # fmt: skip
        try:
            async with asyncio.timeout(TIMEOUT):
                step, answer = await self._walk(plan, subject, query, asked)
        except TimeoutError:
            raise DialError(f"{asked.name}: no answer within {TIMEOUT:g} s", "resolve") from None
        answer = self._policy.clean(answer, asked.type)
        # One TTL for all records, from the first answer on: what the cache would say.
        found = message.records(answer)
        ttl = message.lifetime(answer, found) if step.rewrite_ttl is None else step.rewrite_ttl
        if ttl or step.rewrite_ttl is not None:
            answer = message.with_ttl(answer, [record.ttl_at for record in found if record.type != message.OPT], ttl)
        if keep and self._cache is not None and not step.disable_cache and step.server not in self._fakes:
            self._cache.put(key, query, answer, self._clock(), step.rewrite_ttl)
        return answer

    async def _walk(self, plan: Plan, subject: Subject, query: bytes, asked: Question) -> tuple[Step, bytes]:
        for step in plan:
            if isinstance(step, Reject):
                break
            if _NOT_FOR.get(step.strategy) == asked.type:
                return step, message.reply(query, message.NOERROR)
            cached = self._cache is not None and not step.disable_cache
            known = self._wiring.rejections if step.filter is not None and cached else None
            if known is not None and known.holds(step.server, asked.name, asked.type):
                continue
            try:
                answer = await self._ask(step.server, query)
                message.records(answer)
                good = message.rcode(answer) == message.NOERROR or step.filter is None
                if good and accepts(step, subject, [ip for ip, _ in message.addresses(answer)]):
                    return step, answer
                if known is not None:
                    await asyncio.to_thread(known.add, step.server, asked.name, asked.type)
            except (GatewayError, OSError):
                if step.filter is None:
                    raise
        raise Rejected("dns rule", drop=isinstance(step, Reject) and step.method == "drop")

    async def _ask(self, tag: str, query: bytes) -> bytes:
        asking = _asking.get()
        if tag in asking:
            raise DialError(f"DNS servers resolve each other's names: {' -> '.join((*asking, tag))}", "resolve")
        token = _asking.set((*asking, tag))
        try:
            return await self._servers[tag].exchange(query)
        finally:
            _asking.reset(token)

    def _learn(self, flow: Flow, answer: bytes) -> None:
        """Raises PeerError."""
        if self._reverse is None or answer[4:6] == b"\0\0":
            return  # without a question it is an error, or nobody's answer
        lesson = message.lesson(answer)
        if self._fakes and (fakes := self._wiring.fakes) is not None:
            lesson = lesson._replace(addresses=tuple(ip for ip in lesson.addresses if ip not in fakes))
        if lesson.addresses or lesson.targets:
            ttl = min(one.ttl for one in message.records(answer) if one.section == message.ANSWER)
            self._teach(lesson, flow, ttl, self._clock())

    def _teach(self, lesson: message.Lesson, flow: Flow, ttl: int, now: float) -> None:
        """Raises PeerError where the answer is not to be given out."""
        client, (name, found, targets) = flow.source.ip, lesson
        assert self._reverse is not None
        if self._sink is not None and client is not None:
            self._sink.learn(name, client, [(ip, ttl) for ip in found], [(target, ttl) for target in targets])
        self._reverse.learn(name, client, found, ttl, now)


def fit(answer: bytes, query: bytes, asked: Question) -> bytes:
    """``answer`` with the id of ``query`` and its spelling of the name. Raises PeerError where it
    answers something else."""
    if answer[4:6] == b"\0\0":
        return query[:2] + answer[2:]
    if message.question(answer) != asked:
        raise PeerError("dns: answer to another question")
    return query[:2] + answer[2 : message.HEADER] + query[message.HEADER : asked.end] + answer[asked.end :]
