"""Flow offload: the tcx programs of ``offload.bpf.c`` on interfaces, a short way for what the kernel forwards.

They are attached while there is demand (:mod:`gateway.kernel.bpf.demand`). Closing (or dying) detaches them, and flows
go on by the long way. The sysctls stay until ``down``: conntrack has missed packets of the flows that are running.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from socket import IPPROTO_TCP
from typing import Any

from gateway.core.address import Address
from gateway.core.errors import KernelError
from gateway.kernel import sysctl
from gateway.kernel.bpf.demand import Counters, Demand
from gateway.kernel.bpf.loader import OBJECTS, Object
from gateway.kernel.bpf.syscall import TCX_EGRESS, TCX_INGRESS, close, has_tcx, link_device
from gateway.kernel.conntrack import NOTHING, Count

OBJECT = OBJECTS / "offload.bpf.o"
NO_TCX = "attach programs to interfaces"
"""The step that an older kernel refuses."""
PROGRAMS = (("learn", TCX_EGRESS), ("forward", TCX_INGRESS))
FLOW, HOP = 44, 104
"""Bytes of a key and of a value of the map ``flows`` (bpf/offload.h)."""

COUNTS = struct.Struct("=Q72xQQ8x")
"""Until when a value holds, packets and bytes in it."""
STREAM = 120 * 10**9
"""As in bpf/offload.h: nanoseconds after which a silent UDP flow is over, so that what has the same ends is another."""
ONE = struct.Struct("=QQ")

LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
RESETS = "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst"
"""Conntrack's window of an offloaded connection is an old one: no segment is to be refused for it, nor the reset that
ends it. Both ends check sequence numbers themselves (RFC 9293 section 3.10.7.4). The second: Linux 5.14."""


def counted(short: bytes, value: bytes) -> Count:
    """What a value of ``flows`` says of the direction ``short`` (``ends``); nothing where that is another flow's."""
    until, packets, octets = COUNTS.unpack(value)
    if short[-1] != IPPROTO_TCP and until + STREAM < time.clock_gettime_ns(time.CLOCK_MONOTONIC):
        return NOTHING
    return Count(packets, octets)


def load() -> Object:
    """The object in the kernel, attached nowhere. Raises KernelError."""
    if not has_tcx():
        raise KernelError(NO_TCX, 0, "the kernel knows no tcx (Linux 6.6)")
    programs = Object(OBJECT)
    try:
        programs.load()
        flows = programs.map("flows")
        if (flows.key_size, flows.value_size) != (FLOW, HOP):
            raise KernelError(f"load {OBJECT.name}", 0, "built from another version (make -C bpf)")
    except KernelError:
        programs.close()
        raise
    return programs


def ends(source: Address, destination: Address, protocol: int) -> bytes:
    """How a direction of a flow begins its key in ``flows``: without the interface. Raises ValueError for names."""
    here, there = source.ip, destination.ip
    if here is None or there is None:
        raise ValueError("a flow has addresses, not names")
    packed = here.packed.ljust(16, b"\0") + there.packed.ljust(16, b"\0")
    return packed + source.port.to_bytes(2) + destination.port.to_bytes(2) + bytes((here.version, protocol))


def received(interfaces: Mapping[int, str]) -> Counters:
    """Of those of ``interfaces`` (names by index) that are there, from the caller's /proc/net/dev."""
    names = set(interfaces.values())
    lines = (line.split(":", 1) for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:])
    found = {name.strip(): numbers.split(None, 2) for name, numbers in lines}
    return {name: (int(found[name][0]), int(found[name][1])) for name in names & found.keys()}


class Offload:
    """In the caller's network namespace; ``record`` is the journal. Raises KernelError; nothing is changed then.

    ``attend`` may run in a thread, so that nobody waits while the kernel lets go of a program (some 10 ms each)."""

    def __init__(self, record: Callable[[dict[str, Any]], None]) -> None:
        self._programs = load()
        self._lock = threading.Lock()
        self._links: dict[int, list[int]] = {}
        self._demand = Demand()
        self._closed = False
        self.interfaces: dict[int, str] = {}
        """Those that take part, names by index."""
        try:
            sysctl.write(LIBERAL, 1, record)
        except KernelError:
            self._programs.close()
            raise
        with contextlib.suppress(KernelError):
            sysctl.write(RESETS, 1, record)

    def follow(self, interfaces: Mapping[int, str]) -> None:
        """Offload between these interfaces (Ethernet; names by index) and no others; one that is new is attached to at
        once. Raises KernelError, after all of them have been tried; who is refused takes no part."""
        refused: KernelError | None = None
        with self._lock:
            for index in self._links.keys() - interfaces.keys():
                close(self._links.pop(index))
            known, self.interfaces = self.interfaces, {}
            for index, name in interfaces.items():
                try:
                    if index not in known:
                        self._attach(index)
                    self.interfaces[index] = name
                except KernelError as error:
                    refused = error
        if refused is not None:
            raise refused

    def switch(self, now: float) -> bool | None:
        """What ``attend`` is to be told: True, there is demand and not all is attached; False, there is none and
        something is; None: all is as it should be. ``now``: see Demand."""
        if not self._demand.look(received(self.interfaces), now):
            return False if self._links else None
        return True if self.interfaces.keys() - self._links.keys() else None

    def attend(self, wanted: bool) -> None:
        """Attach to all interfaces, or detach from all."""
        with self._lock:
            if not wanted:
                self._detach()
                return
            for index in self.interfaces.keys() - self._links.keys():
                with contextlib.suppress(KernelError):  # it goes just now
                    self._attach(index)

    def _attach(self, index: int) -> None:
        links: list[int] = []
        try:
            for name, attach in PROGRAMS:
                links.append(link_device(name, self._programs.program(name), index, attach))
        except KernelError:
            close(links)
            raise
        self._links[index] = links

    def _detach(self) -> None:
        while self._links:
            close(self._links.popitem()[1])

    def counts(self) -> dict[bytes, Count]:
        """What went the short way, by ``ends``: of flows that run, and of some that have ended. Some 10 ms at most; may
        be called in a thread. Raises KernelError."""
        found: dict[bytes, Count] = {}
        with self._lock:
            for key, value in () if self._closed else self._programs.map("flows").items():
                short = key[:36] + key[40:42]
                found[short] = counted(short, value).plus(found.get(short, NOTHING))
        return found

    def count(self, short: bytes) -> Count:
        """The same of one direction, at once; not in another thread than ``close``. Raises KernelError."""
        found = NOTHING
        if not self._closed:
            flows = self._programs.map("flows")
            for index in self.interfaces:
                with contextlib.suppress(KeyError):
                    key = short[:36] + index.to_bytes(4, sys.byteorder) + short[36:] + b"\0\0"
                    found = found.plus(counted(short, flows[key]))
        return found

    @property
    def carried(self) -> Count:
        """What went the short way of class direct. Raises KernelError."""
        if self._closed:
            return NOTHING
        values = self._programs.map("carried").each_processor(bytes(4))
        return functools.reduce(Count.plus, (Count(*ONE.unpack(value)) for value in values))

    @property
    def attached(self) -> bool:
        return bool(self._links)

    def close(self) -> None:
        """Any number of times."""
        with self._lock:
            self.interfaces = {}
            self._detach()
            self._programs.close()
            self._closed = True
