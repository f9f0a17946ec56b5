"""What the links do: a doorbell and a fresh look.

Messages of the kernel are not parsed, they only say that something moved; then all links are dumped again and compared.
So it is no loss when the kernel drops messages: it does while the queue is full, and the look comes after emptying it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

from gateway.core.errors import KernelError
from gateway.kernel.netlink.link import Link
from gateway.kernel.netlink.reconciler import Netlink

log = logging.getLogger(__name__)

SOL_NETLINK = 270
NETLINK_NO_ENOBUFS = 5
RTMGRP_LINK = 0x1
RTMGRP_TC = 0x8
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV4_RULE = 0x80
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
RTMGRP_IPV6_RULE = 0x40000  # RTNLGRP_IPV6_RULE, which has no name of this kind
MOVES = (
    RTMGRP_IPV4_IFADDR
    | RTMGRP_IPV6_IFADDR
    | RTMGRP_IPV4_ROUTE
    | RTMGRP_IPV6_ROUTE
    | RTMGRP_IPV4_RULE
    | RTMGRP_IPV6_RULE
)
SETTLE = 0.05
"""Seconds between a ring and the look, so that a burst costs one look."""
RETRY = 1.0


class Monitor:
    """``links`` is the last look, by name. ``watch(changed)`` callbacks get the names whose Link differs, also of
    those that came or went. ``watch_addresses(moved)`` callbacks are called after any change of addresses, routes or
    rules.

    ``run`` is a task of the owner; ``ready`` is set after the first look."""

    def __init__(self, netlink: Netlink) -> None:
        self._netlink = netlink
        self.links: dict[str, Link] = {}
        self.ready = asyncio.Event()
        self._changed: list[Callable[[frozenset[str]], None]] = []
        self._moved: list[Callable[[], None]] = []
        self._rung = asyncio.Event()
        self._address_rung = False
        self._socket: socket.socket | None = None

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        self._changed.append(changed)

    def watch_addresses(self, moved: Callable[[], None]) -> None:
        self._moved.append(moved)

    def unwatch(self, changed: Callable[[frozenset[str]], None], moved: Callable[[], None] | None = None) -> None:
        """Idempotent."""
        self._changed = [one for one in self._changed if one != changed]
        self._moved = [one for one in self._moved if one != moved]

    async def run(self) -> None:
        """Look whenever the bell rings; until cancelled."""
        loop = asyncio.get_running_loop()
        link, other = _bell(RTMGRP_LINK | RTMGRP_TC), _bell(MOVES)
        loop.add_reader(link, self._ring, link, False)
        loop.add_reader(other, self._ring, other, True)
        self._rung.set()
        try:
            while True:
                await self._rung.wait()
                await asyncio.sleep(SETTLE if self.ready.is_set() else 0)
                self._rung.clear()
                await self._look()
        finally:
            for bell in (link, other):
                loop.remove_reader(bell)
                bell.close()

    def _ring(self, bell: socket.socket, moved: bool) -> None:
        for _ in range(64):
            try:
                bell.recv(1)  # the rest of the message is cut off
            except BlockingIOError:
                break
            except OSError as error:  # ENOBUFS, where the option below is unknown: a ring like any other
                log.debug("netlink monitor: %s", error)
        self._address_rung |= moved
        self._rung.set()

    async def _look(self) -> None:
        moved, self._address_rung = self._address_rung, False
        try:
            links = await self._netlink.links()
        except (KernelError, OSError) as error:
            log.warning("netlink monitor: %s", error)
            asyncio.get_running_loop().call_later(RETRY, self._rung.set)
            return
        old, self.links = self.links, links
        names = frozenset(name for name in old.keys() | links.keys() if old.get(name) != links.get(name))
        self.ready.set()
        if names:
            _tell(lambda: [changed(names) for changed in self._changed])
        if moved:
            _tell(lambda: [callback() for callback in self._moved])


def _tell(callbacks: Callable[[], object]) -> None:
    try:
        callbacks()
    except Exception:
        log.exception("subscriber of the netlink monitor")


def _bell(groups: int) -> socket.socket:
    bell = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    # No ENOBUFS: a socket with an error pending makes libuv, and so uvloop, give up polling it for good.
    bell.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
    bell.bind((0, groups))
    return bell
