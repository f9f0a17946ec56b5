"""Brings addresses, routes and rules to what is wanted; the door to ``Session`` for the rest of the program.

The session lives on a thread of its own: pyroute2 cannot run on uvloop, and a dump of a large routing table must not
hold up the flows. The thread is in the network namespace of the thread that opened it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from gateway.kernel.netlink import diff
from gateway.kernel.netlink.diff import Address, Inverse, Route, Rule
from gateway.kernel.netlink.link import Link
from gateway.kernel.netlink.session import Prefix, Session

T = TypeVar("T")

RECORD_WAIT = 10.0
"""Seconds a step waits for its inverse to be recorded; a loop that has died must not hang the exit."""


def discard(step: Inverse) -> None:
    """A ``record`` that keeps nothing."""


class Netlink:
    """Open it in the running loop with ``async with``. Calls are done one after another, each to its end even where
    the caller is cancelled. ``record`` is called in the opener's loop with the inverse of a step, before the step is
    done, each inverse once; what it raises keeps the step from being done. All methods raise KernelError."""

    def __init__(self, record: Callable[[Inverse], None] = discard) -> None:
        self._record = record
        self._steering = asyncio.Lock()
        self.steering = False
        """The rule and the route of ``steer`` have to stand."""
        self._session = Session(self._note)

    async def __aenter__(self) -> Netlink:
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        try:
            await self._call(self._session.open)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *args: object) -> None:
        await self._call(self._session.close)
        await self._end()

    async def _end(self) -> None:
        await self._loop.run_in_executor(self._thread, self._runner.close)
        self._thread.shutdown(wait=False)

    async def links(self) -> dict[str, Link]:
        """All interfaces by name."""
        return await self._call(self._session.links)

    async def addresses(self, interface: str) -> list[Address]:
        return await self._call(lambda: self._session.addresses(interface))

    async def routes(self, interface: str) -> list[Route]:
        """Unicast and local routes out of ``interface``, every table, the kernel's own ones included."""
        return await self._call(lambda: self._session.routes(interface))

    async def prefixes(self) -> frozenset[Prefix]:
        """Networks of all addresses of this host that are valid beyond their link; those of ``lo`` are in it."""
        return await self._call(self._session.prefixes)

    async def rules(self) -> list[Rule]:
        return await self._call(self._session.rules)

    async def reconcile(self, interface: str, addresses: Iterable[Address], routes: Iterable[Route]) -> int:
        """Make ``interface`` have these addresses and routes and no others of ours. Returns the number of steps; 0
        means that nothing was touched."""
        want = tuple(addresses), tuple(routes)
        return await self._call(lambda: self._session.reconcile(interface, *want))

    async def reconcile_rules(self, want: Iterable[Rule]) -> int:
        """Make these rules stand, and no others of protocol ``diff.OWN``. Returns the number of steps."""
        wanted = tuple(want)
        return await self._call(lambda: self._session.reconcile_rules(wanted))

    async def add_rules(self, rules: Iterable[Rule]) -> None:
        """In this order; one that is there already is an error (EEXIST)."""
        new = tuple(rules)
        await self._call(lambda: self._session.add_rules(new))

    async def delete_rules(self, rules: Iterable[Rule]) -> None:
        """In this order; one that is gone is none."""
        old = tuple(rules)
        await self._call(lambda: self._session.delete_rules(old))

    async def steer(self, on: bool = True) -> int:
        """The rule and local route that deliver marked packets to this host, IPv4 and IPv6; off removes them, the
        rule first, so that no packet finds it without its table. Returns the number of steps."""
        async with self._steering:
            routes, rules = diff.steering() if on else ((), ())
            steps = await self.reconcile("lo", (), routes) if on else 0
            steps += await self.reconcile_rules(rules)
            self.steering = on
            return steps if on else steps + await self.reconcile("lo", (), ())

    async def set_link(self, interface: str, *, up: bool | None = None, mtu: int = 0) -> None:
        """Writes only what differs; ``mtu`` 0 leaves it."""
        await self._call(lambda: self._session.set_link(interface, up=up, mtu=mtu))

    async def filter_bridge(self, interface: str) -> None:
        """Let what the bridge ``interface`` forwards pass iptables and nftables, IPv4 and IPv6."""
        await self._call(lambda: self._session.filter_bridge(interface))

    async def bridge(self, name: str, ports: Iterable[str]) -> None:
        """A bridge of this name with these ports, as far as they exist; made where there is none. What is a port of
        another one is refused."""
        wanted = tuple(ports)
        await self._call(lambda: self._session.bridge(name, wanted))

    async def undo(self, step: Inverse) -> None:
        """Do one inverse. What is gone, or no longer as we left it, is success."""
        await self._call(lambda: self._session.undo(step))

    async def _call(self, method: Callable[[], Awaitable[T]]) -> T:
        async def main() -> T:
            return await method()

        return await self._loop.run_in_executor(self._thread, lambda: self._runner.run(main()))

    def _note(self, step: Inverse) -> None:
        """Called on the session's thread: waits until the loop's thread has recorded it."""
        done: Future[None] = Future()

        def record() -> None:
            try:
                self._record(step)
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(record)
        done.result(RECORD_WAIT)
