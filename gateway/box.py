"""One gateway built from one configuration: starts it, applies a changed configuration, stops it.

A ``Plane`` (inbounds, rules, outbounds) always; a ``Host`` (base table, uplinks, LANs) where there is a ``gateway``
object. A ``tun`` inbound changes the host too: where there is no Host the journal is the Box's own, and is played
backwards at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, get_args

from msgspec import structs

from gateway.accounts import Accounts
from gateway.config.root import Config
from gateway.core.account import By
from gateway.core.errors import ConfigError, GatewayError
from gateway.host import Host, undo
from gateway.kernel import descriptors, mark
from gateway.kernel.journal import Journal
from gateway.options import GatewayOptions
from gateway.pauses import ALL, identify
from gateway.plane import NoLeases, Plane
from gateway.prediction import lans_of, offline, predict
from gateway.route.options import RouteConfig, RuleSetOptions
from gateway.service.cache_file import CacheFile
from gateway.service.options import CacheFileOptions, ExperimentalOptions
from gateway.service.rule_sets import Copies, RemoteSets, absent
from gateway.steering import Kernel

RUN = Path("/run/gateway")
STATE = Path("/var/lib/gateway")
RULE_SETS = "rule-sets.db"
"""In the state folder: what was downloaded, where there is no ``cache_file`` for it."""
AGAIN = 60.0
"""Seconds until changed rule sets are tried again that could not be put in force."""
SETTLE = 0.5
"""Seconds after a rule set has changed, in which others may: they are put in force together."""

log = logging.getLogger("gateway.box")


class Box:
    """``run`` and ``state`` are the folders of this instance; ``run`` is there, and claimed. Build it in the running
    loop. ``patience()``: a block in which the loop may stand still for a while, for whoever watches it. Raises
    ConfigError; OSError, KernelError where this process may not do what a gateway does."""

    def __init__(
        self,
        config: Config,
        run: Path,
        state: Path,
        patience: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.config = config
        self.run = run
        self.started = time.time()
        self.state: Literal["starting", "running"] = "starting"
        self._changing = asyncio.Lock()
        self._ends = contextlib.AsyncExitStack()
        """What ``stop`` does, last first, each whatever the others raise."""
        self._stopping = False
        options = gateway_options(config)
        self.host = None if options is None else Host(options, run, state)
        leases = NoLeases() if self.host is None else self.host.uplinks
        own = None if self.host is None else self.host.lans.daemon.leases
        self._journal: Journal | None = None
        self.cache = cache_file(config)
        if self.cache is not None:
            self.cache.open()
        self._shelf = self.cache or CacheFile(state / RULE_SETS)
        self.copies = Copies(self._shelf)
        self.plane = Plane(
            config, leases, _mark(config), self._record, self.host is not None, own, self.cache, self.copies.rules
        )
        self.remote = RemoteSets(self.copies, self.plane.wiring, self._set_changed)
        leases.watch(self.remote.hurry)
        self._turning: asyncio.Task[None] | None = None
        """Puts changed rule sets in force."""
        self.kernel = None
        if self.host is not None and options is not None:
            self.kernel = Kernel(options, config, self.host, self.plane, patience)
        self._patience = patience
        self.accounts = Accounts(self.plane, self.host, self.kernel)

    async def start(self) -> None:
        """Returns when everything that needs nobody else stands; leases and late interfaces come when they come.
        Raises KernelError where the kernel refuses the base table or forwarding, OSError where a port is taken."""
        async with self._changing:
            self._ends.callback(self._shelf.close)
            self._ends.push_async_callback(self._end_host)
            self._ends.push_async_callback(self.plane.stop)
            if self.host is not None:
                await self.host.start()
            elif _tunnels(self.config):
                await undo(self.run)  # what a killed one has left
                self._journal = Journal(self.run)
            await self.plane.start()
            if self.kernel is not None:
                self._ends.push_async_callback(self.kernel.stop)
                await self.kernel.start()
            self._ends.push_async_callback(self.remote.stop)
            self.remote.use(rule_sets(self.config))
        self.state = "running"

    async def reload(self, config: Config) -> None:
        """Apply what differs; flows go on but for those that the new rules send elsewhere, or whose outbound changed.
        Raises GatewayError (a port is taken, the kernel refuses); what stood before goes on."""
        async with self._changing:
            if self._stopping:
                raise GatewayError("the gateway stops")
            # Rule sets are read and compiled, which a small processor may be long at.
            with self._patience() if self.kernel is None else self.kernel.patience():
                await self._reload(config)

    async def _reload(self, config: Config) -> None:
        options = gateway_options(config)
        if (options is None) != (self.host is None):
            raise ConfigError('the "gateway" object came or went: restart for that')
        marked, needed = self.plane.wiring.mark, _mark(config)
        if needed and needed != marked and not (marked and needed == mark.OWN):
            # Sockets that are open would be led into the device.
            raise ConfigError("the first tun inbound came, or its auto_redirect_output_mark changed: restart for that")
        if _cache_options(config) != _cache_options(self.config):
            raise ConfigError("it changed: restart for that", "experimental.cache_file")
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
        except Exception as error:
            try:
                await self.plane.listen(old)
            finally:
                if self.host is not None and before is not None:
                    await self.host.reload(before)
            if isinstance(error, GatewayError):
                raise
            said = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
            raise GatewayError(said) from error
        self.config = config
        self.remote.use(rule_sets(config))
        self.remote.hurry()
        ended = await self.plane.leave(old)
        if self.kernel is not None:
            self.kernel.forget(ended)

    def _set_changed(self) -> None:
        if self._turning is None:
            self._turning = asyncio.create_task(self._turn(), name="rule sets")

    async def _turn(self) -> None:
        """Put rule sets in force as they are now, by a reload of what is in force otherwise."""
        await asyncio.sleep(SETTLE)
        self._turning = None  # what changes from here on needs another turn
        try:
            async with self._changing:
                if not self._stopping:
                    with contextlib.nullcontext() if self.kernel is None else self.kernel.patience():
                        await self._reload(self.config)
            return
        except GatewayError as error:
            log.error("changed rule sets are not in force: %s; tried again in %.0f s", error, AGAIN)
        except Exception:
            log.exception("changed rule sets are not in force")
        asyncio.get_running_loop().call_later(AGAIN, self._set_changed)

    def _record(self, step: dict[str, Any]) -> None:
        """The inverse of a step of an inbound."""
        journal = self._journal if self.host is None else self.host.journal
        assert journal is not None
        journal.record(step)

    @property
    def changed(self) -> float:
        """When it last changed something of the host that it had not changed before, in seconds of CLOCK_BOOTTIME; 0
        never."""
        journal = self._journal if self.host is None else self.host.journal
        return 0.0 if journal is None else journal.changed

    async def stop(self) -> None:
        """End our part, however far ``start`` came; the plain router stands. After a reload that is at work."""
        self._stopping = True
        async with self._changing:
            await self._ends.aclose()

    async def _end_host(self) -> None:
        if self.host is not None:
            await self.host.stop()
        elif self._journal is not None:
            self._journal.close()
            await undo(self.run)

    def line(self) -> str:
        """Its state in one line for a person."""
        if self._stopping or self.state != "running":
            return "stops" if self._stopping else "starts"
        if self.host is None:
            return "runs; nothing of this host is changed"
        uplinks = self.host.uplinks
        waits = [f"{one.interface}: {one.problem}" for one in uplinks.snapshots if one.problem]
        said = [f"uplink {uplinks.elected.interface}" if uplinks.elected else "no uplink", *waits]
        refused = {} if self.kernel is None else self.kernel.problems
        said += [f"{what}: {why}" for what, why in (self.host.lans.problems | refused).items()]
        return f"routes; {'; '.join(said)}"

    @property
    def heartbeat(self) -> float:
        """Seconds after which the loop counts as dead if it stands still; 0 never."""
        options = gateway_options(self.config)
        return float((options or GatewayOptions()).heartbeat)

    def explain(self, request: dict[str, Any]) -> dict[str, Any]:
        """What would become of a flow now. Raises GatewayError."""
        missing = absent(rule_sets(self.config), self.copies)
        request, told = self._unmasked(request)
        found = self._explain(request, missing)
        found["text"] = [*told, *found["text"]]
        return found

    def _unmasked(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Of a fake address the name that it stands for, and a line that says so. Raises GatewayError."""
        fakes = self.plane.wiring.fakes
        try:
            ip = ip_address(str(request.get("destination", "")))
        except ValueError:
            return request, []
        if fakes is None or ip not in fakes:
            return request, []
        name = fakes.name(ip)
        if not name:
            raise GatewayError(f"{ip} is a fake address that stands for no name: its flows are refused")
        return {**request, "destination": name}, [f"{ip} is a fake address: the kernel leads its flows to userspace"]

    def _explain(self, request: dict[str, Any], missing: list[str]) -> dict[str, Any]:
        if self.kernel is None:
            return offline(self.config, request, self.copies.rules, missing)
        kernel, engine, names = self.kernel, self.plane.router.engine, self.plane.resolver.learned
        if (name := str(request.get("hostname", "")).lower()) and not request.get("mac"):
            macs = [mac for mac, known in self.plane.leases.hostnames().items() if known == name]
            if not macs:
                raise GatewayError(f'no lease has the name "{name}"')
            request = {**request, "mac": macs[-1]}
        lans, judge = lans_of(self.config), kernel.judge
        return predict(engine, kernel.compiled, request, names, kernel.tag, lans, kernel.steering, self.plane.devices,
                       judge, missing, kernel.exempt)  # fmt: skip

    def pause(self, request: dict[str, Any]) -> dict[str, Any]:
        """New flows of ``device`` ("" = all) are direct, for ``seconds`` (None = until ``resume``). Raises
        GatewayError."""
        seconds = request.get("seconds")
        if seconds is not None and not isinstance(seconds, int | float):
            raise GatewayError("seconds are a number")
        kernel, (device, name) = self._steers(), self._device(request)
        kernel.pauses.pause(device, name, seconds)
        return {"device": device, "name": name}

    def resume(self, request: dict[str, Any]) -> dict[str, Any]:
        """End the pause of ``device``, or all of them. Raises GatewayError."""
        kernel, (device, name) = self._steers(), self._device(request)
        kernel.pauses.resume(device or None)
        return {"device": device, "name": name}

    def _steers(self) -> Kernel:
        if self.kernel is None:
            raise GatewayError('nothing is steered here: the configuration has no "gateway" object')
        return self.kernel

    def _device(self, request: dict[str, Any]) -> tuple[str, str]:
        text = str(request.get("device") or "")
        return identify(text, dict(self.plane.leases.hostnames())) if text else (ALL, "")

    async def flows(self, request: dict[str, Any]) -> dict[str, Any]:
        """What ``gateway flows`` shows: totals where ``by`` is asked for, else what runs. Raises GatewayError."""
        if by := request.get("by"):
            if by not in get_args(By):
                raise GatewayError(f'no totals by "{by}"; there are: {", ".join(get_args(By))}')
            return {"totals": [total._asdict() for total in await self.accounts.totals(by)]}
        interval = request.get("interval", 0)
        if not isinstance(interval, int | float):
            raise GatewayError("the interval is a number of seconds")
        words = [str(word) for word in request.get("filter", [])]
        return structs.asdict(await self.accounts.flows(request.get("sort", "bytes"), words, float(interval)))

    def devices(self) -> dict[str, Any]:
        """What ``gateway devices`` shows."""
        return {"devices": [guest._asdict() for guest in self.plane.leases.guests()]}

    def groups(self) -> dict[str, Any]:
        """What ``gateway groups`` shows."""
        return {"groups": self.plane.groups()}

    async def urltest(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let ``group`` probe its members. Raises GatewayError."""
        return {"group": await self.plane.check(str(request.get("group", "")))}

    def select(self, request: dict[str, Any]) -> dict[str, Any]:
        """Let ``group`` use ``member``. Raises GatewayError."""
        self.plane.select(str(request.get("group", "")), str(request.get("member", "")))
        return {}

    def status(self) -> dict[str, Any]:
        """What ``gateway status`` shows."""
        host = {} if self.host is None else self.host.status()
        kernel = {} if self.kernel is None else self.kernel.status()
        uptime = round(time.time() - self.started, 1)
        files = dict(zip(("open", "limit"), descriptors.used(), strict=True))
        classes = [total._asdict() for total in self.accounts.classes()]
        return {
            "state": self.state, "uptime": uptime, "files": files, **self.plane.status(), "classes": classes,
            "groups": self.plane.groups(), "rule_sets": self.remote.status(), "looks": self.accounts.looks,
            "overruns": self.accounts.overruns,
            **host, **kernel,
        }  # fmt: skip


def gateway_options(config: Config) -> GatewayOptions | None:
    """The ``gateway`` object."""
    options = config.gateway
    if options is None:
        return None
    assert isinstance(options, GatewayOptions)
    return options


def _cache_options(config: Config) -> CacheFileOptions:
    options = config.experimental
    return options.cache_file if isinstance(options, ExperimentalOptions) else CacheFileOptions()


def cache_file(config: Config, *, reading: bool = False) -> CacheFile | None:
    """The one of ``experimental.cache_file``, None where it is not enabled."""
    options = _cache_options(config)
    if not options.enabled:
        return None
    return CacheFile(config.directory / options.path, options.cache_id, reading=reading)


def kept_copies(config: Config, state: Path) -> Copies:
    """What a gateway whose state is in this folder keeps of remote rule sets, to look at."""
    return Copies(cache_file(config, reading=True) or CacheFile(state / RULE_SETS, reading=True))


def rule_sets(config: Config) -> tuple[RuleSetOptions, ...]:
    return config.route.rule_set if isinstance(config.route, RouteConfig) else ()


def _tunnels(config: Config) -> list[Any]:
    """Options of the ``tun`` inbounds."""
    return [item.options for item in config.inbounds if item.type == "tun"]


def _mark(config: Config) -> int:
    """SO_MARK of our own sockets. The lower bits are for the rules of others: sing-box marks its own with them."""
    outputs = [options.output_mark for options in _tunnels(config) if options.auto_redirect]
    if config.gateway is None and not _tunnels(config):
        return 0
    return mark.OWN | (outputs[0] if outputs else 0)
