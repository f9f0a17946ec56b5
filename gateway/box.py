"""One gateway built from one configuration: starts it, applies a changed configuration, stops it.

A ``Plane`` (inbounds, rules, outbounds) always; a ``Host`` (base table, uplinks, LANs) where there is a ``gateway``
object.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import Any, Literal

from gateway.config.root import Config
from gateway.core.errors import ConfigError, GatewayError
from gateway.flows import listing
from gateway.host import Host
from gateway.kernel import conntrack, mark
from gateway.options import GatewayOptions
from gateway.plane import NoLeases, Plane
from gateway.prediction import lans_of, offline, predict
from gateway.steering import Kernel

RUN = Path("/run/gateway")
STATE = Path("/var/lib/gateway")


class Box:
    """``run`` and ``state`` are the folders of this instance. Build it in the running loop. Raises ConfigError."""

    def __init__(self, config: Config, run: Path, state: Path) -> None:
        self.config = config
        self.run = run
        self.started = time.time()
        self.state: Literal["starting", "running"] = "starting"
        self._changing = asyncio.Lock()
        options = gateway_options(config)
        run.mkdir(parents=True, exist_ok=True)
        self.host = None if options is None else Host(options, run, state)
        leases = NoLeases() if self.host is None else self.host.uplinks
        self.plane = Plane(config, leases, 0 if self.host is None else mark.OWN)
        self.kernel = None if self.host is None or options is None else Kernel(options, config, self.host, self.plane)

    async def start(self) -> None:
        """Returns when everything that needs nobody else stands; leases and late interfaces come when they come.
        Raises KernelError where the kernel refuses the base table or forwarding, OSError where a port is taken."""
        async with self._changing:
            if self.host is not None:
                await self.host.start()
            await self.plane.start()
            if self.kernel is not None:
                await self.kernel.start()
        self.state = "running"

    async def reload(self, config: Config) -> None:
        """Apply what differs; flows go on but for those that the new rules send elsewhere, or whose outbound changed.
        Raises GatewayError (a port is taken, the kernel refuses); what stood before goes on."""
        async with self._changing:
            await self._reload(config)

    async def _reload(self, config: Config) -> None:
        options = gateway_options(config)
        if (options is None) != (self.host is None):
            raise ConfigError('the "gateway" object came or went: restart for that')
        before, old = gateway_options(self.config), self.plane.parts
        parts = await self.plane.prepare(config)
        try:
            if self.host is not None and options is not None:
                await self.host.reload(options)
            await self.plane.listen(parts)
            if self.kernel is None or options is None:
                self.plane.use(parts)
            else:
                await self.kernel.reload(options, config, parts)
        except (GatewayError, OSError) as error:
            await self.plane.listen(old)
            if self.host is not None and before is not None:
                await self.host.reload(before)
            raise error if isinstance(error, GatewayError) else GatewayError(str(error)) from error
        self.config = config
        ended = await self.plane.leave(old)
        if self.kernel is not None:
            self.kernel.forget(ended)

    async def stop(self) -> None:
        """End our part; the plain router stands."""
        if self.kernel is not None:
            await self.kernel.stop()
        await self.plane.stop()
        if self.host is not None:
            await self.host.stop()
        else:
            with contextlib.suppress(OSError):
                self.run.rmdir()

    def explain(self, request: dict[str, Any]) -> dict[str, Any]:
        """What would become of a flow now. Raises GatewayError."""
        if self.kernel is None:
            return offline(self.config, request)
        kernel, engine, names = self.kernel, self.plane.router.engine, self.plane.resolver.learned
        lans, judge = lans_of(self.config), kernel.judge
        return predict(engine, kernel.compiled, request, names, kernel.tag, lans, kernel.steering, judge)

    async def flows(self, request: dict[str, Any]) -> dict[str, Any]:
        """What ``gateway flows`` shows. Raises GatewayError."""
        plane = self.plane
        tracked = None if self.kernel is None else conntrack.counted(mark.DIRECT, mark.CLASS)
        now = plane.edge.loop.time()
        return await listing(plane.router.flows(), tracked, plane.resolver.learned, now, request)

    def status(self) -> dict[str, Any]:
        """What ``gateway status`` shows."""
        host = {} if self.host is None else self.host.status()
        kernel = {} if self.kernel is None else self.kernel.status()
        uptime = round(time.time() - self.started, 1)
        return {"state": self.state, "uptime": uptime, **self.plane.status(), **host, **kernel}


def gateway_options(config: Config) -> GatewayOptions | None:
    """The ``gateway`` object."""
    options = config.gateway
    if options is None:
        return None
    assert isinstance(options, GatewayOptions)
    return options
