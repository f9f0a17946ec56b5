"""Ties the rules to the kernel: what they decide alone stays there, the rest is sent to the plane's tproxy inbound.

Made where a ``gateway`` object stands. Nothing of it survives the process: the owned table, the process programs and
the listeners go with their descriptors, and the LAN is then served by the plain router that stands below.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import logging
import pwd
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from gateway import catalog
from gateway.config.root import Config, Tagged
from gateway.core.address import IP
from gateway.core.contracts import Wiring
from gateway.core.errors import ConfigError, KernelError
from gateway.core.flow import Findings, Flow, Network
from gateway.core.stream import Buffer
from gateway.dns.listener import Listener
from gateway.dns.policy import Policy
from gateway.host import Host
from gateway.kernel import cgroup, conntrack, mark
from gateway.kernel.bpf.process import KNOWN_LESS, ProcessMarks
from gateway.kernel.owner import forget_names
from gateway.kernel.plan import Capture, Steering, Verdict, by_user, refuses
from gateway.kernel.sockopt import is_local, sockaddr
from gateway.kernel.steer import Steerer
from gateway.logins import Logins
from gateway.names import Names, Wishes
from gateway.options import GatewayOptions
from gateway.pauses import Pauses
from gateway.plane import Parts, Plane, made, start
from gateway.prediction import fake_networks
from gateway.prediction import kinds as kinds_of
from gateway.protocol.tproxy.reply import Replies
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.engine import Decision
from gateway.route.explain import Query, skipped
from gateway.route.mention import names_address
from gateway.route.program import Kind
from gateway.uplink.leases import PAUSE

EXPIRY = 5.0
"""Seconds between looks for names that have expired; the kernel's own timeouts need no look."""
MORE = 0.1
"""Where many expire at once: others have their turn."""
BEAT = 1.0
"""Seconds between two signs of life."""
PUT_OFF = 2
"""Seconds that the kernel begins no flow in userspace for a device that holds too many, unless it is told again."""
LOGINS = 5.0
"""Seconds between looks for logins."""
AGAIN = 2.0
"""Seconds after which steering begins again that the kernel has refused; twice as many after each further refusal."""
LATEST = 64.0
"""The most of them."""
TRIES = 10
"""Ports that are tried for captured DNS."""
GIVEN_UP = ("steering", "learned names")
"""Problems for which steering ends."""
TAG = "gateway"
"""Tag of the tproxy inbound that is made where the configuration names none."""

log = logging.getLogger("gateway.steering")


class State(NamedTuple):
    """What is in force: the configuration, and what it comes to."""

    options: GatewayOptions
    config: Config
    inbound: Any
    kinds: dict[str, Kind]
    hostnames: dict[str, str]
    """Hardware address to host name, of those names that the rules ask for."""
    compiled: Compiled


class Kernel:
    """``problems``: what the kernel refused, name -> one line for a person; steering goes on without it. ``patience``
    as for the Box."""

    def __init__(
        self,
        options: GatewayOptions,
        config: Config,
        host: Host,
        plane: Plane,
        patience: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._patience = patience
        self._host = host
        self._plane = plane
        self._made: Any = None
        self._dns: Listener | None = None
        self._marks: ProcessMarks | None = None
        self._marked = ""
        """The cgroup of the options under which ``_marks`` was attached."""
        self._steerer: Steerer | None = None
        self._holding: tuple[Steerer, ProcessMarks | None] | None = None
        """What the keeper holds."""
        self._back: HandBack | None = None
        self._state = self._compile(options, config, self._entry(options, plane.parts), plane.parts)
        self.problems: dict[str, str] = {}
        clock = plane.edge.loop.time
        self.names = Names(self.compiled, wishes(options), clock, partial(self._give_up, "learned names"))
        self.pauses = Pauses(self._recapture)
        self.logins = Logins(self._named, self._recapture)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def tag(self) -> str:
        """Under which captured flows enter."""
        return str(self._state.inbound.tag)

    @property
    def compiled(self) -> Compiled:
        return self._state.compiled

    def _entry(self, options: GatewayOptions, parts: Parts) -> Any:
        """The inbound that captured flows enter: the named one, or one of our own."""
        if not options.inbound:
            if self._made is None:
                item = Tagged(TAG, "tproxy", catalog.options("inbound", "tproxy")(), "")
                self._made = made("inbound", item, self._plane.wiring)
                self._plane.made.append(self._made)
            return self._made
        found = parts.inbounds.get(options.inbound)
        if found is None or found.type != "tproxy":
            raise ConfigError(f'no tproxy inbound has the tag "{options.inbound}"', "gateway.inbound")
        return found

    def _compile(self, options: GatewayOptions, config: Config, inbound: Any, parts: Parts) -> State:
        engine = parts.engine
        kinds = kinds_of(config, parts.outbounds.chosen)
        forget_names()
        users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
        groups = {entry.gr_name: entry.gr_gid for entry in grp.getgrall()}
        hostnames = self._hostnames(parts)
        inputs = Inputs(
            kinds, inbound.tag, users, groups, hostnames, options.kernel.mode, options.learn, fake_networks(config)
        )
        engine.captured = inbound.tag
        engine.direct = next((tag for tag, kind in kinds.items() if kind == "direct"), "")
        compiled = compile_rules(engine.rules, engine.final, engine.sets, inputs)
        engine.keeps = compiled.keeps
        return State(options, config, inbound, kinds, hostnames, compiled)

    def _hostnames(self, parts: Parts) -> dict[str, str]:
        asked = parts.engine.hostnames
        return {mac: name for mac, name in self._plane.leases.hostnames().items() if name in asked} if asked else {}

    async def start(self) -> None:
        """After the plane has started. What the kernel refuses is told in ``problems``."""
        await self._listen(self._state)
        self._plane.resolver.obey(policy(self._state.options))
        # As late as can be: what it holds decides until our own does. But before our programs mark a socket.
        await self._host.dismiss()
        self._mark_processes()
        self.logins.heard(self.logins.look())
        try:
            await self._host.netlink.steer()
            self._begin()
        except (KernelError, ValueError) as error:
            self._give_up("steering", error)
        self._plane.router.certain = self._certain
        self._plane.router.decided = self._decided
        self._plane.router.limit.notice = self._put_off
        self._watch(self._plane.parts, None)
        self._expire()
        self._look_at_leases()
        self._look_at_logins()
        self._beat()

    def _begin(self) -> None:
        """Raises KernelError, ValueError; nothing steers then."""
        steerer = self._steerer = self.names.steerer = Steerer(silent=int(self._state.options.heartbeat))
        if not steerer.owned:
            self.problems["owner"] = "the kernel knows no owners of tables (Linux 5.12): others may change ours"
        try:
            steerer.apply(self.steering, self._capture())
            self.pauses.use(steerer)
            self.logins.use(steerer)
            self._hold()
        except (KernelError, ValueError):
            steerer.close()
            self._steerer = self.names.steerer = None
            self.pauses.use(None)
            self.logins.use(None)
            raise
        self._back = self._plane.router.sessions.kernel = HandBack(self._plane.wiring, steerer, self._direct)
        self._teach()

    async def _listen(self, state: State) -> None:
        """The listener of captured DNS, where it is wanted. Raises OSError."""
        if state.options.capture_dns and state.config.dns_servers and self._dns is None:
            for left in reversed(range(TRIES)):
                dns = Listener(self._plane.resolver, self._plane.wiring, free_port())
                try:
                    await dns.start()
                    break
                except OSError as error:
                    if not left or error.errno != errno.EADDRINUSE:  # else somebody was faster
                        raise
            self._dns = dns

    def _capture(self) -> Capture:
        options, config, inbound = self._state[:3]
        lans = tuple(lan.interface for lan in options.lans)
        captured = options.capture_dns and config.dns_servers and self._dns is not None
        port = self._dns.port if captured and self._dns is not None else 0
        wanted, (hints, shared) = options.dns_policy, wishes(options)
        return Capture(
            lans, inbound.port, port, one_armed=not options.uplinks, shared=shared, hints=hints or shared,
            dot=wanted.dot == "allow", doh=tuple(wanted.prefixes),
            wans=tuple(uplink.interface for uplink in options.uplinks), paused=self.pauses.kinds,
            peers=self.logins.kinds,
        )  # fmt: skip

    def _recapture(self) -> None:
        """What is paused, and whose logins run, has changed. Raises KernelError."""
        if self._steerer is not None:
            self._steerer.capture(self.steering, self._capture())

    def _named(self, address: IP) -> bool:
        return names_address(self._plane.parts.engine.rules, address)

    def exempt(self, source: IP | None, mac: str, target: IP | None) -> str:
        """See ``prediction.Exempt``."""
        if told := self.pauses.holds(source, mac):
            return f"{told} (gateway resume)"
        login = source is None and target is not None and target in self.logins.peers
        return "a login from there runs on this host, and no rule names the address" if login else ""

    @property
    def steering(self) -> Steering:
        """The compiled plan, as far as it can be in force. Where the CO-RE programs are missing nftables judges users,
        BCC's program cgroups, if the plan asks for nothing else; with others in it every local socket is of an unknown
        class, so that userspace looks its owner up."""
        plan, processes, marks = self.compiled.steering, self.compiled.processes, self._marks
        less = marks is not None and marks.instead and not processes.by_cgroup
        if "process rules" in self.problems or less:
            return replace(plan, local=(), users=by_user(processes, plan))
        return plan

    def _hold(self) -> None:
        """Raises KernelError."""
        assert self._steerer is not None
        self._steerer.watch(int(self._state.options.heartbeat))
        wanted = (self._steerer, self._marks) if self._state.options.fail == "hold" else None
        if wanted is None:
            self._steerer.let_go()
        elif wanted != self._holding:
            self._steerer.hold(self._host.keeper, () if self._marks is None else self._marks.links)
        self._holding = wanted

    def _direct(self, flow: Flow, outbound: str) -> bool:
        """Whether the kernel would carry a flow of that outbound as the outbound does, and may."""
        mode, kinds = self._state.options.kernel.mode, self._state.kinds
        return mode != "off" and flow.inbound == self.tag and kinds.get(outbound) == "direct"

    def _certain(self, flow: Flow, findings: Findings) -> bool:
        """Of the tables in force; they were made for flows of this inbound."""
        return flow.inbound == self.tag and self.compiled.certain(flow, findings)

    # -- a changed configuration

    async def reload(self, options: GatewayOptions, config: Config, parts: Parts) -> None:
        """Judge by ``parts``, in the kernel and in the plane from the same moment on. Raises ConfigError, KernelError,
        OSError; both are as they were then."""
        before = self._plane.made[:]
        inbound = self._entry(options, parts)
        await start([one for one in self._plane.made if one not in before])
        state = await asyncio.to_thread(self._compile, options, config, inbound, parts)
        await self._listen(state)
        self._swap(state)  # nothing waits from here on
        old = self._plane.parts
        self._plane.use(parts)
        if self._dns is not None:
            self._dns.resolver = parts.resolver
        parts.resolver.obey(policy(options))
        self._teach()
        self._watch(parts, old)
        self._switched()  # while the rules were compiled

    def _teach(self) -> None:
        """The names of answers, as long as there is who believes them."""
        resolver = self._plane.resolver
        sink = self.names if self._steerer is not None else None
        if not self._state.options.learn:
            resolver.forget()
        elif resolver.sink is not sink:
            resolver.teach(sink)

    def _swap(self, state: State) -> None:
        """Put ``state`` in force in the kernel, running flows keep their class. Raises KernelError; what was in force
        is so still."""
        old, self._state = self._state, state
        learned, changes = self.names.rebuild(state.compiled, wishes(state.options))
        turned = state.compiled.processes != old.compiled.processes
        turned = turned or state.options.kernel.cgroup != old.options.kernel.cgroup
        turned = turned or (self._marks is None and self._finds(state))
        try:
            if self._steerer is None:
                self._mark_processes()
                self._begin()
            else:
                # While sockets carry classes of two plans none of them is believed.
                plan = replace(self.steering, local=()) if turned else self.steering
                self._steerer.apply(plan, self._capture(), changes)
        except (KernelError, ValueError) as error:
            self._state = old
            raise KernelError(f"apply the rules ({error})", getattr(error, "errno", 0)) from error
        for key in GIVEN_UP:
            self.problems.pop(key, None)
        self.names.adopt(learned, state.compiled, wishes(state.options))
        try:
            if turned and self._steerer is not None:
                self._mark_processes()
                self._steerer.apply(self.steering, self._capture())
            self._hold()
        except KernelError as error:
            self._give_up("steering", error)

    def _watch(self, parts: Parts, old: Parts | None) -> None:
        """Hear of each group that now stands for another outbound."""
        for tag in parts.outbounds:
            outbound = parts.outbounds[tag]
            if hasattr(outbound, "watch") and (
                old is None or tag not in old.outbounds or old.outbounds[tag] is not outbound
            ):
                outbound.watch(self._switched)

    def _switched(self) -> None:
        """What the rules were compiled with may have changed: a group's choice, a device's name."""
        if "turn" not in self._tasks and self._steerer is not None and self._differs():
            self._do("turn", self._turn)

    def _differs(self) -> bool:
        state, parts = self._state, self._plane.parts
        found = kinds_of(state.config, parts.outbounds.chosen), self._hostnames(parts)
        return found != (state.kinds, state.hostnames)

    async def _turn(self) -> None:
        """Rules are compiled beside the loop, which goes on serving flows."""
        while self._steerer is not None and self._differs():
            state, parts = self._state, self._plane.parts
            with self.patience():
                new = await asyncio.to_thread(self._compile, state.options, state.config, state.inbound, parts)
                if state is not self._state or self._steerer is None:
                    continue  # a reload was faster
                try:
                    self._swap(new)
                except KernelError as error:
                    # The kernel would go on by what was.
                    self._give_up("steering", error)

    def _do(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            try:
                await work()
            except Exception:
                log.exception(name)
            finally:
                del self._tasks[name]

        self._tasks[name] = asyncio.create_task(main(), name=name)

    def forget(self, ended: Sequence[Flow]) -> None:
        """Flows that were ended, or have no session any more, are classified anew should they go on."""
        if self._steerer is None:
            return
        ours = [flow for flow in ended if flow.network == "tcp" and flow.inbound == self.tag]
        tcp = {(flow.source, flow.fake or flow.destination) for flow in ours}
        alive = {flow.source for flow in self._plane.router.sessions.flows()}
        try:
            for source, destination in tcp:
                conntrack.delete_flow("tcp", source, destination)
            for entry in conntrack.dump(mark.ROUTE, mark.ROUTE):
                session = entry.protocol == conntrack.PROTOCOLS["udp"] and entry.mark & mark.CLASS != mark.NAMES
                if session and entry.source not in alive:
                    conntrack.delete_flow("udp", entry.source, entry.destination)
        except KernelError as error:
            log.warning("old flows keep their class: %s", error)

    def _look_at_leases(self) -> None:
        self._timers["leases"] = self._plane.edge.loop.call_later(PAUSE, self._look_at_leases)
        if self._state.hostnames or self._plane.parts.engine.hostnames:
            self._switched()

    def _look_at_logins(self) -> None:
        self._timers["logins"] = self._plane.edge.loop.call_later(LOGINS, self._look_at_logins)
        if "logins" not in self._tasks:
            self._do("logins", self._hear_of_logins)

    async def _hear_of_logins(self) -> None:
        peers = await asyncio.to_thread(self.logins.look)
        try:
            self.logins.heard(peers)
        except KernelError as error:  # and again with the next look
            log.warning("logins: %s", error)

    # -- names

    def _decided(self, flow: Flow, findings: Findings, decision: Decision) -> None:
        """What a captured flow has shown, if names are learned at all."""
        if flow.inbound == self.tag and self._state.options.learn:
            plain = decision.action == "route" and decision.destination in (None, flow.destination)
            self.names.decided(flow, findings.domain, plain and self._direct(flow, decision.outbound))

    def _expire(self) -> None:
        later = self._plane.edge.loop.call_later
        self._timers["expire"] = later(EXPIRY, self._expire)
        if self.names.expire():
            self._timers["expire"].cancel()
            self._timers["expire"] = later(MORE, self._expire)

    # -- processes

    @staticmethod
    def _finds(state: State) -> bool:
        """Owners are wanted for people to see, also where no rule asks for them."""
        return state.config.route is not None and bool(state.config.route.find_process)

    def _mark_processes(self) -> None:
        """Programs for the plan's processes; where the kernel refuses them local sockets are of no known class."""
        plan, where = self.compiled.processes, self._state.options.kernel.cgroup
        for key in ("process rules", "process programs"):
            self.problems.pop(key, None)
        try:
            wanted = not plan.empty or self._finds(self._state)
            if self._marks is not None and (where != self._marked or not wanted):
                self._marks.close()
                self._marks = self._plane.owners.marks = None
            if self._marks is not None:
                self._marks.apply(plan)
            elif wanted:
                self._marks = self._plane.owners.marks = ProcessMarks(where or cgroup.mount_point(), plan)
                self._marked = where
            if self._marks is not None and self._marks.instead:
                self.problems["process programs"] = f"{KNOWN_LESS} ({self._marks.instead})"
        except (KernelError, OSError) as error:
            self._complain("process rules", error)

    # -- devices that want too much

    def _put_off(self, network: Network, device: IP | str) -> None:
        """Refusing one by one would take the time of all the others."""
        if self._steerer is not None and network != "icmp" and not isinstance(device, str):
            try:
                self._steerer.put_off(network, device, PUT_OFF)
            except KernelError as error:
                log.warning("%s is not put off: %s", device, error)

    # -- signs of life

    def _beat(self) -> None:
        """Each second, as long as the loop turns."""
        self._timers["beat"] = self._plane.edge.loop.call_later(BEAT, self._beat)  # whatever fails below
        for network, device in tuple(self._plane.router.limit.full):
            self._put_off(network, device)
        if self._steerer is not None:
            try:
                self._steerer.beat()
            except KernelError as error:
                log.warning("%s", error)  # and again with the next beat

    @contextlib.contextmanager
    def patience(self) -> Iterator[None]:
        """In the block the loop may stand still for a while."""
        with self._patience(), contextlib.nullcontext() if self._steerer is None else self._steerer.patience():
            yield

    # -- the end

    def _give_up(self, what: str, error: Exception) -> None:
        """Without steering every flow is direct, by the plain router; until it begins again."""
        self._complain(what, f"{error}; tried again in {AGAIN:.0f} s")
        self._plane.resolver.teach(None)
        self._plane.router.sessions.kernel = None
        if self._back is not None:
            self._back.close()
        if self._steerer is not None:
            self._steerer.close()
            self._steerer = self.names.steerer = None
            self.pauses.use(None)
            self.logins.use(None)
        if "again" not in self._tasks:
            self._do("again", self._again)

    async def _again(self) -> None:
        """Until the kernel takes it, or a reload was faster."""
        pause = AGAIN
        while True:
            await asyncio.sleep(pause)
            if self._steerer is not None:
                return
            try:
                await self._host.netlink.steer()
                self._swap(self._state)
            except (KernelError, OSError) as error:
                pause = min(2 * pause, LATEST)
                self._complain("steering", f"{error}; tried again in {pause:.0f} s")
                continue
            if self._steerer is not None:
                log.warning("steering begins again")
                self._switched()
                return

    def _complain(self, what: str, error: Exception | str) -> None:
        self.problems[what] = str(error)
        log.error("%s: %s", what, error)

    async def stop(self) -> None:
        """Steering ends first, so that no flow is sent to a listener that is gone."""
        self.pauses.close()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._plane.resolver.teach(None)
        self._plane.router.sessions.kernel = None
        if self._back is not None:
            self._back.close()
        steerer, self._steerer, self.names.steerer = self._steerer, None, None
        if steerer is not None:
            steerer.leave()
        if steerer is None or not steerer.held:
            with contextlib.suppress(KernelError):
                await self._host.netlink.steer(False)
        if self._marks is not None:
            self._marks.close()
        if self._dns is not None:
            await self._dns.close()

    def judge(self, query: Query, profile: int, nameless: Verdict) -> tuple[Verdict, str]:
        """See ``route.explain.Judge``."""
        capture = self._capture()
        if query.process is None and query.source is not None and refuses(capture, query.address, query.port):
            return Verdict.REJECT, "in the kernel: refused, as gateway.dns_policy says"
        return self.names.judge(query, profile, nameless)

    def carried(self) -> tuple[dict[Verdict, conntrack.Count], conntrack.Count] | None:
        """First packets by verdict, and what else passed of direct flows (but for the short way); None where nothing
        is steered."""
        if self._steerer is not None:
            with contextlib.suppress(KernelError):
                return self._steerer.counters(), self._steerer.carried()
        return None

    def kept(self, outbound: str) -> bool:
        """Whether flows of that outbound may be the kernel's."""
        return self._state.kinds.get(outbound) == "direct"

    def status(self) -> dict[str, Any]:
        """Its part of what ``gateway status`` shows."""
        mode, rules = self.compiled.mode, skipped(self._plane.router.engine, self.compiled)
        return {
            "steering": self._steerer is not None, "mode": mode, "skipped": rules, "refused": self.problems,
            "names": self.names.tables(), "paused": self.pauses.shown(),
        }  # fmt: skip


class HandBack:
    """See ``route.session.HandBack``. ``direct``: whether the kernel would carry a flow as that outbound does."""

    def __init__(self, wiring: Wiring, steerer: Steerer, direct: Callable[[Flow, str], bool]) -> None:
        self._steerer = steerer
        self._direct = direct
        self._senders = Replies(wiring)

    def hand_back(self, flow: Flow, outbound: str) -> bool:
        source = flow.source.ip
        if source is None or flow.destination.ip is None or not self._direct(flow, outbound) or is_local(source):
            return False
        try:
            self._steerer.hand_back(flow.source, flow.destination)
        except (KernelError, ValueError) as error:
            log.warning("%s to %s stays in userspace: %s", flow.source, flow.destination, error)
            return False
        return True

    def forward(self, flow: Flow, data: Buffer, segment: int) -> None:
        ip = flow.destination.ip
        if ip is not None:
            self._senders.receiver(sockaddr(ip, flow.destination.port))(data, flow.source, segment)

    def close(self) -> None:
        self._senders.close()


def wishes(options: GatewayOptions) -> Wishes:
    """``auto`` is off in strict, which promises what it believes and no more nor less."""
    kernel = options.kernel
    if not options.learn:
        return Wishes()
    hints = kernel.hints == "on" or (kernel.hints == "auto" and kernel.mode in ("balanced", "fast"))
    shared = kernel.shared_prefixes == "on" or (kernel.shared_prefixes == "auto" and kernel.mode == "balanced")
    return Wishes(hints, shared)


def policy(options: GatewayOptions) -> Policy:
    wanted = options.dns_policy
    return Policy(frozenset(wanted.domains), wanted.canary, wanted.ddr == "empty", wanted.ech == "strip")


def free_port() -> int:
    """A port free for UDP and TCP of both families."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            first.bind(("0.0.0.0", 0))
            port: int = first.getsockname()[1]
            try:
                other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                other.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
