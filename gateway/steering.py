"""Ties the rules to the kernel: what they decide alone stays there, the rest is sent to the plane's tproxy inbound.

Made where a ``gateway`` object stands. Nothing of it survives the process: the owned table, the process programs and
the listeners go with their descriptors, and the LAN is then served by the plain router that stands below.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pwd
import socket
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

from gateway import catalog
from gateway.config.root import Config, Tagged
from gateway.core.address import IP
from gateway.core.contracts import Inbound, Outbound
from gateway.core.errors import ConfigError, KernelError
from gateway.dns.listener import Listener
from gateway.host import Host
from gateway.kernel import cgroup
from gateway.kernel.bpf.process import ProcessMarks
from gateway.kernel.plan import Capture, LearnedChange, ProcessPlan, Steering
from gateway.kernel.steer import Steerer
from gateway.options import GatewayOptions
from gateway.plane import Plane
from gateway.protocol.direct.options import OutboundOptions as DirectOptions
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.learned import Learned
from gateway.route.program import Kind

EXPIRY = 5.0
"""Seconds between looks for names that have expired; the kernel's own timeouts need no look."""
TAG = "gateway"
"""Tag of the tproxy inbound that is made where the configuration names none."""

log = logging.getLogger("gateway.steering")


class Kernel:
    """``problems``: what the kernel refused, name -> one line for a person; steering goes on without it."""

    def __init__(self, options: GatewayOptions, config: Config, host: Host, plane: Plane) -> None:
        self._options = options
        self._config = config
        self._host = host
        self._plane = plane
        self._inbound = self._entry()
        self._dns: Listener | None = None
        self._marks: ProcessMarks | None = None
        self._steerer: Steerer | None = None
        self.compiled: Compiled = self._compile()
        self.problems: dict[str, str] = {}
        self._learned = Learned(self.compiled)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def tag(self) -> str:
        """Under which captured flows enter."""
        return str(self._inbound.tag)

    def _entry(self) -> Any:
        """The inbound that captured flows enter: the named one, or one of our own."""
        tag = self._options.inbound
        if tag:
            found = next((inbound for inbound in self._plane.inbounds if inbound.tag == tag), None)
            if found is None or found.type != "tproxy":
                raise ConfigError(f'no tproxy inbound has the tag "{tag}"', "gateway.inbound")
            return found
        made = catalog.runtime("inbound", "tproxy")(TAG, catalog.options("inbound", "tproxy")(), self._plane.wiring)
        self._plane.inbounds.append(cast(Inbound, made))
        return made

    def _compile(self) -> Compiled:
        engine = self._plane.router.engine
        kinds = {tag: kind_of(self._config.outbounds, self._plane.outbounds.leaf(tag)) for tag in self._plane.outbounds}
        users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
        inputs = Inputs(kinds, self._inbound.tag, users, self._options.kernel.mode)
        return compile_rules(engine.rules, engine.final, engine.sets, inputs)

    async def start(self) -> None:
        """After the plane has started. What the kernel refuses is told in ``problems``."""
        port = 0
        if self._options.capture_dns and self._config.dns_servers:
            port = free_port()
            self._dns = Listener(self._plane.resolver, self._plane.wiring, port)
            await self._dns.start()
        self._mark_processes(self.compiled.processes)
        try:
            await self._host.netlink.steer()
            self._steerer = Steerer()
            lans = tuple(lan.interface for lan in self._options.lans)
            capture = Capture(lans, self._inbound.port, port, one_armed=not self._options.uplinks)
            self._steerer.apply(self._steering(), capture)
            if self._options.fail == "hold":
                self._steerer.hold(self._host.keeper, () if self._marks is None else self._marks.links)
            if self._options.learn:
                self._plane.resolver.teach(self)
                self._expire()
        except (KernelError, ValueError) as error:
            self._complain("steering", error)

    def _steering(self) -> Steering:
        """The compiled plan; where the process programs are missing every local socket is of an unknown class, so that
        userspace looks its owner up."""
        plan = self.compiled.steering
        return replace(plan, local=()) if "process rules" in self.problems else plan

    def learn(self, name: str, client: IP, addresses: Iterable[tuple[IP, int]]) -> None:
        """See ``core.contracts.LearnedSink``."""
        self._write(self._learned.learn(name, client, addresses, self._plane.edge.loop.time()))

    def _expire(self) -> None:
        loop = self._plane.edge.loop
        self._write(self._learned.expire(loop.time()))
        self._timer = loop.call_later(EXPIRY, self._expire)

    def _write(self, changes: Sequence[LearnedChange]) -> None:
        """Into the kernel now. Where that fails names are no longer believed: what the learned sets hold goes."""
        if not changes or self._steerer is None:
            return
        try:
            self._steerer.elements(changes)
        except KernelError as error:
            self._complain("learned names", error)
            self._plane.resolver.teach(None)
            self._steerer.close()
            self._steerer = None

    def _mark_processes(self, plan: ProcessPlan) -> None:
        if not (plan.paths or plan.names or plan.uids or plan.gids):
            return
        try:
            self._marks = ProcessMarks(self._options.kernel.cgroup or cgroup.mount_point(), plan)
            self._plane.owners.marks = self._marks
        except (KernelError, OSError) as error:
            self._complain("process rules", error)

    def _complain(self, what: str, error: Exception) -> None:
        self.problems[what] = str(error)
        log.error("%s: %s", what, error)

    async def stop(self) -> None:
        """Steering ends first, so that no flow is sent to a listener that is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._plane.resolver.teach(None)
        if self._steerer is not None:
            self._steerer.leave()
        if self._steerer is None or not self._steerer.held:
            with contextlib.suppress(KernelError):
                await self._host.netlink.steer(False)
        if self._marks is not None:
            self._marks.close()
        if self._dns is not None:
            await self._dns.close()

    def status(self) -> dict[str, Any]:
        """Its part of what ``gateway status`` shows."""
        return {"steering": self._steerer is not None and "steering" not in self.problems, "refused": self.problems}


def kind_of(items: tuple[Tagged, ...], leaf: Outbound) -> Kind:
    """``direct`` only for a direct outbound that says nothing about how to dial: the kernel can do just that."""
    if leaf.type == "block":
        return "block"
    if leaf.type != "direct":
        return "proxy"
    options = next((item.options for item in items if item.tag == leaf.tag), DirectOptions())
    return "direct" if options == DirectOptions() else "proxy"


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
