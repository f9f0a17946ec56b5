"""Flow offload: the tcx programs of ``offload.bpf.c`` on interfaces, a short way for what the kernel forwards.

Closing (or dying) detaches them, and flows go on by the long way. The sysctls stay until ``down``: conntrack has missed
packets of the flows that are running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from typing import Any

from gateway.core.errors import KernelError
from gateway.kernel import sysctl
from gateway.kernel.bpf.loader import OBJECTS, Object
from gateway.kernel.bpf.syscall import TCX_EGRESS, TCX_INGRESS, close, has_tcx, link_device

OBJECT = OBJECTS / "offload.bpf.o"
NO_TCX = "attach programs to interfaces"
"""The step that an older kernel refuses."""
PROGRAMS = (("learn", TCX_EGRESS), ("forward", TCX_INGRESS))
FLOW, HOP = 44, 80
"""Bytes of a key and of a value of the map ``flows`` (bpf/offload.h)."""

LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
RESETS = "net/netfilter/nf_conntrack_tcp_ignore_invalid_rst"
"""Conntrack's window of an offloaded connection is an old one: no segment is to be refused for it, nor the reset that
ends it. Both ends check sequence numbers themselves (RFC 9293 section 3.10.7.4). The second: Linux 5.14."""


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


class Offload:
    """In the caller's network namespace; ``record`` is the journal. Raises KernelError; nothing is changed then."""

    def __init__(self, record: Callable[[dict[str, Any]], None]) -> None:
        self._programs = load()
        self._links: dict[int, list[int]] = {}
        try:
            sysctl.write(LIBERAL, 1, record)
        except KernelError:
            self._programs.close()
            raise
        with contextlib.suppress(KernelError):
            sysctl.write(RESETS, 1, record)

    def follow(self, interfaces: Collection[int]) -> None:
        """Be attached to the interfaces of these indexes (Ethernet) and no others. Raises KernelError, after all of
        them have been tried."""
        refused: KernelError | None = None
        for index in self._links.keys() - set(interfaces):
            close(self._links.pop(index))
        for index in interfaces:
            if index not in self._links:
                try:
                    self._attach(index)
                except KernelError as error:
                    refused = error
        if refused is not None:
            raise refused

    def _attach(self, index: int) -> None:
        links: list[int] = []
        try:
            for name, attach in PROGRAMS:
                links.append(link_device(name, self._programs.program(name), index, attach))
        except KernelError:
            close(links)
            raise
        self._links[index] = links

    @property
    def interfaces(self) -> frozenset[int]:
        return frozenset(self._links)

    def close(self) -> None:
        """Any number of times."""
        while self._links:
            close(self._links.popitem()[1])
        self._programs.close()
