"""The DHCPv4 client of one interface: the machine on the event loop, with its sockets, its clock and its lease file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

from gateway.kernel.clock import boot_id, boottime
from gateway.uplink.dhcp4 import lease as lease_file
from gateway.uplink.dhcp4.lease import Lease
from gateway.uplink.dhcp4.machine import (
    Changed,
    Config,
    LinkDown,
    LinkUp,
    Machine,
    Release,
    Renew,
    Stop,
)
from gateway.uplink.dhcp4.rim import Rim

log = logging.getLogger(__name__)
FILE_LIMIT = 65536


class LeaseFile:
    """``STATE/INTERFACE.lease.json``, written whole or not at all. A failed write is logged, nothing more."""

    def __init__(self, state: Path, interface: str) -> None:
        self.path = state / f"{interface}.lease.json"

    def load(self, hardware: bytes) -> Lease | None:
        try:
            with self.path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(FILE_LIMIT)
        except OSError:
            return None
        return lease_file.from_json(text, hardware, boot_id(), boottime(), time.time())

    def save(self, lease: Lease, hardware: bytes) -> None:
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(lease_file.to_json(lease, hardware, boot_id(), boottime(), time.time()))
            os.replace(temporary, self.path)
        except OSError as error:
            log.warning("lease file %s: %s", self.path, error)

    def forget(self) -> None:
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("lease file %s: %s", self.path, error)


class Client:
    """``changed(lease, reason)`` is told of every lease, renewal and loss (lease None); what it raises is logged and
    does not touch the protocol. All methods return at once. Make it inside a running loop; ``close`` it there."""

    def __init__(
        self,
        interface: str,
        config: Config,
        state: Path,
        changed: Callable[[Lease | None, str], None],
        mark: int = 0,
        random: Callable[[], float] | None = None,
    ) -> None:
        self.interface = interface
        self.machine = Machine(config, random or SystemRandom().random)
        self._file = LeaseFile(state, interface)
        self._changed = changed
        self._index = 0
        self._up = False
        self.rim = Rim(interface, self.machine, self._publish, mark)

    def link_up(self, index: int, hardware: bytes, htype: int = 1) -> None:
        """Carrier is there. The same link again is no news; another index or hardware address is."""
        machine = self.machine
        if self._up and index == self._index and hardware == machine.hardware:
            return
        if self._index not in (0, index):
            self.rim.port.rebind()
            machine.forget_sockets()
        self._index, self._up = index, True
        remembered = self._file.load(hardware) if machine.lease is None else None
        self.rim.do(LinkUp(hardware, htype, remembered))

    def link_down(self) -> None:
        if self._up:
            self._up = False
            self.rim.do(LinkDown())

    def renew(self) -> None:
        self.rim.do(Renew())

    def release(self) -> None:
        """Give the lease back, forget it, stop."""
        self.rim.do(Release())
        self._up = False

    def close(self) -> None:
        """Stop; the lease, its file and the address stand."""
        self.rim.do(Stop())
        self.rim.close()

    def _publish(self, change: Changed) -> None:
        if change.lease is not None:
            self._file.save(change.lease, self.machine.hardware)
        else:
            self._file.forget()
        try:
            self._changed(change.lease, change.reason)
        except Exception:
            log.exception("%s: subscriber of the lease", self.interface)
