"""The device, the ip rules that lead into it, the table that takes flows before they get there, and their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.core.address import Address
from gateway.core.contracts import Wiring, echoes
from gateway.core.errors import KernelError, Rejected
from gateway.core.flow import Flow
from gateway.kernel import sysctl
from gateway.kernel.edge import IN
from gateway.kernel.netlink.diff import Rule
from gateway.kernel.netlink.monitor import Monitor
from gateway.kernel.netlink.reconciler import Netlink, discard
from gateway.kernel.nft.tun import Table
from gateway.kernel.sockopt import is_local
from gateway.kernel.tun import HEADER, PLAIN, Device
from gateway.protocol.tproxy.inbound import Inbound as Transparent
from gateway.protocol.tproxy.options import InboundOptions as TransparentOptions
from gateway.protocol.tun import codec, plan
from gateway.protocol.tun.codec import Echo, Packet
from gateway.protocol.tun.echo import Echoes
from gateway.protocol.tun.names import Names
from gateway.protocol.tun.options import InboundOptions

log = logging.getLogger("gateway.tun")

BATCH = 64
"""Packets taken from the device in one wake-up."""
ERRORS = 100
"""ICMP errors a second; beyond them nothing is said."""
INTERVAL = 0.25
"""Seconds between two repairs, should somebody take it away again each time."""
LOOPS = 60.0
"""Seconds between two lines of the log that say that this host's own flows come back."""
MTU = 65535
_HERE = {4: "127.0.0.1", 6: "::1"}


class _Sockets(Transparent):
    """Where the table delivers: of one family, at its loopback address, so that nobody else reaches them."""

    type = "tun"


class Inbound:
    """``start`` raises KernelError where the kernel refuses the device, nftables or tproxy."""

    type = "tun"

    def __init__(self, tag: str, options: InboundOptions, wiring: Wiring) -> None:
        self.tag = tag
        self.device = options.interface_name
        self._options = options
        self._wiring = wiring
        self._sockets = {
            family: _Sockets(tag, TransparentOptions(listen=_HERE[family], udp_timeout=options.udp_timeout), wiring)
            for family in options.families
        }  # fmt: skip
        servers = options.names_server if options.auto_redirect else {}
        self._names = Names(tag, self.type, wiring, servers) if servers else None
        self._echoes = Echoes(wiring, self._answer)
        self._own = frozenset(prefix.ip for prefix in options.addresses)
        self._near = tuple(prefix.network for prefix in options.addresses)
        self._loopback = frozenset(options.loopback)
        self._device: Device | None = None
        self._index = 0
        self._table: Table | None = None
        self._netlink: Netlink | None = None
        self._rules: tuple[Rule, ...] = ()
        """The ip rules that it has written."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._second, self._said = 0.0, 0
        self._warned = -LOOPS

    # -- life

    async def start(self) -> None:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        for sockets in self._sockets.values():
            await sockets.start()
        if self._names is not None:
            self._names.start()
        table = self._table = Table(self._names is not None)
        netlink = self._netlink = await Netlink(self._record).__aenter__()
        await self._make(self._options.interface_name or "tun%d")
        local = await self._local()
        ports: dict[int, int] = {family: sockets.port for family, sockets in self._sockets.items()}
        names = 0 if self._names is None else self._names.port
        here = not self._wiring.steers
        table.load(plan.tunnel(self._options, self.device, ports, names, local, self._sets, here))
        await self._route()
        await self._rule()
        monitor = Monitor(netlink)
        moved = asyncio.Event()
        monitor.watch(lambda names: moved.set() if self.device in names else None)
        monitor.watch_addresses(moved.set)
        if self._options.auto_redirect:
            monitor.watch_addresses(lambda: self._do(self._follow_local()))
        self._do(self._keep(moved))
        self._do(monitor.run())

    async def _make(self, name: str) -> None:
        assert self._netlink is not None
        device = self._device = Device(name)
        self.device, self._index = device.name, socket.if_nametoindex(device.name)
        self._tune(device.name)
        await self._netlink.set_link(device.name, up=True, mtu=self._options.mtu or MTU)
        self._wiring.edge.add(device.fd, IN, self._readable)

    def _record(self, step: dict[str, Any]) -> None:
        """The device takes all else with it."""
        if step["kind"] == "rule" and self._wiring.record is not None:
            self._wiring.record(step)

    def _tune(self, device: str) -> None:
        """What goes with the device needs no inverse."""
        with contextlib.suppress(KernelError):
            # No router solicitations, no multicast listener reports into a device where nobody is.
            sysctl.write(f"net/ipv6/conf/{device}/addr_gen_mode", 1, discard)
        with contextlib.suppress(KernelError):
            if "1" in (sysctl.read(f"net/ipv4/conf/{name}/rp_filter") for name in ("all", device)):
                # What comes out of the device has the addresses of others: loose.
                sysctl.write(f"net/ipv4/conf/{device}/rp_filter", 2, discard)

    @property
    def _sets(self) -> Any:
        return self._wiring.sets or {}

    async def _local(self) -> frozenset[Any]:
        assert self._netlink is not None
        return (await self._netlink.prefixes()).difference(self._near)

    async def _route(self) -> int:
        """Number of steps."""
        assert self._netlink is not None
        assert self._table is not None
        routes = plan.routes(self._options, self.device, self._table.number, self._sets)
        return await self._netlink.reconcile(self.device, plan.own(self._options, self.device), routes)

    async def _rule(self) -> None:
        """Those that stand already are another's, a second gateway's perhaps: they are neither written nor deleted."""
        assert self._netlink is not None
        assert self._table is not None
        rules = plan.rules(self._options, self.device, self._table.number, not self._wiring.steers)
        there = frozenset(await self._netlink.rules())
        self._rules = tuple(rule for rule in rules if rule not in there)
        if len(self._rules) < len(rules):
            span = plan.priorities(self._options)
            log.warning("%s: ip rules of another tun stand between %d and %d", self.tag, span.start, span.stop - 1)
        await self._netlink.add_rules(self._rules)

    async def _keep(self, moved: asyncio.Event) -> None:
        """Puts back what others take away: addresses and routes, which go with a device that is set down, and rules."""
        problem = ""
        while True:
            await moved.wait()
            moved.clear()
            try:
                found = await self._stand()
            except (KernelError, KeyError) as error:
                found = f"what others took away cannot be put back: {error}"
            if found and found != problem:
                log.warning("%s: %s", self.tag, found)
            problem = found
            await asyncio.sleep(INTERVAL)

    async def _stand(self) -> str:
        """What is wrong, which nobody here can change. Raises KernelError, KeyError."""
        assert self._netlink is not None
        link = (await self._netlink.links()).get(self.device)
        if link is None or link.index != self._index:
            self._drop()
            await self._make(self.device)  # EBUSY where another has taken the name
            log.warning("%s: %s was deleted by another program, and is made anew", self.tag, self.device)
        elif not link.up:
            return f"{self.device} was set down by another program: flows go past it"
        steps = await self._route()
        there = frozenset(await self._netlink.rules())
        if gone := tuple(rule for rule in self._rules if rule not in there):
            await self._netlink.add_rules(gone)
        if steps or gone:
            log.warning(
                "%s: addresses, routes or ip rules of %s were taken away by another program, and are restored",
                self.tag, self.device,
            )  # fmt: skip
        return ""

    def _drop(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            self._wiring.edge.remove(device.fd)
            device.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._wiring.edge.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def follow(self) -> None:
        """Rule sets were read anew. Never raises: what cannot be written stays as it was, and the log says so."""
        if self._table is None or not self._options.rule_sets:
            return
        if self._options.auto_redirect:
            self._fill(lambda: plan.set_elements(self._options, self._sets))
        else:
            self._do(self._follow_routes())

    async def _follow_local(self) -> None:
        try:
            local = await self._local()
        except KernelError as error:
            log.warning("%s: networks of this host: %s", self.tag, error)
            return
        self._fill(lambda: plan.local_elements(local))

    async def _follow_routes(self) -> None:
        try:
            await self._route()
        except (KernelError, KeyError) as error:
            log.error("%s: routes stay as they were: %s", self.tag, error)

    def _fill(self, elements: Callable[[], Any]) -> None:
        if self._table is not None:
            try:
                self._table.fill(elements())
            except (KernelError, KeyError) as error:
                log.error("%s: sets of addresses stay as they were: %s", self.tag, error)

    async def close(self) -> None:
        """Nothing of it is left. Any number of times."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        netlink, self._netlink = self._netlink, None
        if netlink is not None:
            try:
                await netlink.delete_rules(self._rules)
            except KernelError as error:
                log.error("%s: ip rules stay: %s", self.tag, error)
            await netlink.__aexit__()
        table, self._table = self._table, None
        if table is not None:
            with contextlib.suppress(KernelError):
                table.close()
        self._drop()
        self._echoes.close()
        if self._names is not None:
            self._names.close()
        for sockets in self._sockets.values():
            await sockets.close()

    # -- packets that did reach the device

    def _readable(self, events: int) -> None:
        for _ in range(BATCH):
            device = self._device
            if device is None:
                return
            try:
                frame = device.read()
            except OSError as error:
                if error.errno == errno.EBADFD:  # somebody has deleted it
                    self._wiring.edge.remove(device.fd)
                elif error.errno != errno.EIO:  # somebody has set it down
                    raise
                return
            if frame is None:
                return
            self._packet(device, frame)

    def _packet(self, device: Device, frame: memoryview) -> None:
        packet = codec.parse(bytes(frame[HEADER:]))
        if packet is None:
            return
        if packet.destination in self._loopback:
            device.write(bytes(frame[:HEADER]) + codec.swapped(packet))
        elif packet.protocol in (codec.TCP, codec.UDP):
            if self._of_this_host(packet):
                self._come_back(packet)
                self._refuse(packet, *codec.PORT[packet.family])
            else:
                # Once more through the table, which takes what comes out of the device; the flow's next packet gets no
                # further than that.
                device.write(frame)
        elif (said := codec.echo(packet)) is not None:
            self._echo(packet, said)
        else:
            self._refuse(packet, *codec.PROTOCOL[packet.family])

    def _of_this_host(self, packet: Packet) -> bool:
        return packet.source in self._own or is_local(packet.source)

    def _come_back(self, packet: Packet) -> None:
        """The table takes flows of this host before they get here, but for those of our own sockets: taken, each would
        make another one, without end."""
        now = self._wiring.edge.loop.time()
        near = any(packet.destination in network for network in self._near)
        if codec.answerable(packet) and not near and now - self._warned >= LOOPS:
            self._warned = now
            log.warning(
                "%s: the way of an outbound to %s leads back into %s: it is refused; set its bind_interface, or route "
                "what the outbounds need past the device", self.tag, packet.destination, self.device,
            )  # fmt: skip

    def _echo(self, packet: Packet, said: Echo) -> None:
        if packet.destination.is_multicast:
            return
        if self._echoes.ours(packet, said) and self._of_this_host(packet):
            self._come_back(packet)
            return
        flow = Flow("icmp", self.tag, self.type, Address(packet.source, 0), Address(packet.destination, 0))
        try:
            outbound = self._wiring.router.carrier(flow)
            if outbound is not None and outbound.type == "block":
                raise Rejected(f"outbound {outbound.tag} blocks")
            near = any(packet.destination in network for network in self._near)
            if echoes(outbound) and not near:
                self._echoes.send(packet, said, outbound)
                return
        except Rejected as error:
            if not error.drop:
                self._refuse(packet, *codec.PROHIBITED[packet.family])
            return
        except OSError as error:
            log.info("%s: echo to %s: %s", self.tag, packet.destination, error)
            self._refuse(packet, codec.UNREACHABLE[packet.family], 0)
            return
        # No outbound but a direct one carries it: answered for the destination, as sing-box does.
        self._answer(codec.reply(packet, said))

    def _refuse(self, packet: Packet, kind: int, code: int) -> None:
        if codec.answerable(packet) and self._may_speak():
            self._answer(codec.error(packet, kind, code))

    def _may_speak(self) -> bool:
        now = self._wiring.edge.loop.time()
        if now - self._second >= 1:
            self._second, self._said = now, 0
        self._said += 1
        return self._said <= ERRORS

    def _answer(self, packet: bytes) -> None:
        if self._device is not None:
            self._device.write(PLAIN + packet)
