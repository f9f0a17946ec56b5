"""What is paused: everything, or single devices; new flows are then the kernel's and direct, whatever the rules say.

A device is an element of a set of the owned table, with a timeout where the pause has an end; the rules that look into
these sets are there only while somebody is paused. All of it ends with the process.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, NamedTuple

from gateway.core.address import IP
from gateway.core.errors import GatewayError, KernelError
from gateway.kernel.plan import Pause
from gateway.kernel.steer import Steerer

ALL = ""
"""In place of a device."""
MOST = 4096
"""Devices; the kernel's sets hold as many. A further one is refused."""
LONGEST = 366 * 86400.0
"""Seconds of a pause with an end."""
MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


class Entry(NamedTuple):
    name: str
    """As it was asked for: a host name, or ""."""
    until: float | None
    """Seconds of the clock; None: until it is resumed."""


class Pauses:
    """Made in the running loop. ``changed`` is called when other rules are needed (``kinds``), before the elements of
    what ends are gone and after those of what begins are there; it raises KernelError."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = changed
        self._steerer: Steerer | None = None
        self._entries: dict[str, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def kinds(self) -> tuple[Pause, ...]:
        """What the kernel has to look for."""
        if ALL in self._entries:
            return ("all",)
        return tuple(sorted({kind_of(device) for device in self._entries}))

    def use(self, steerer: Steerer | None) -> None:
        """Another table, whose sets are empty, and whose rules know ``kinds``. Raises KernelError."""
        self._steerer = steerer
        for device, entry in self._entries.items():
            self._put(device, entry)

    def pause(self, device: str, name: str, seconds: float | None) -> None:
        """``device`` as ``identify`` has it. Raises GatewayError."""
        if seconds is not None and not 1 <= seconds <= LONGEST:
            raise GatewayError("a pause has a second at least, and a year at most")
        if len(self._entries) >= MOST and device not in self._entries:
            raise GatewayError(f"{MOST} devices are paused already")
        before, old = self.kinds, self._entries.get(device)
        entry = Entry(name, None if seconds is None else self._loop.time() + seconds)
        try:
            self._put(device, entry)
            self._entries[device] = entry
            if self.kinds != before:
                self._changed()
        except KernelError:
            self._entries.pop(device, None)
            if old is not None:
                self._entries[device] = old
            raise
        self._wait()

    def resume(self, device: str | None) -> None:
        """None: everything. Raises GatewayError."""
        if not self._entries:
            raise GatewayError("nothing is paused")
        if device is not None and device not in self._entries:
            hint = ", but everything is: gateway resume" if ALL in self._entries else ""
            raise GatewayError(f"{device} is not paused{hint}")
        self._end([device] if device is not None else list(self._entries))

    def _end(self, devices: list[str]) -> None:
        before, gone = self.kinds, [device for device in devices if self._entries.pop(device, None) is not None]
        if self.kinds != before:
            self._changed()
        if self._steerer is not None:
            for device in gone:
                if device != ALL:
                    self._steerer.take(kind_of(device), [key_of(device)])
        self._wait()

    def holds(self, source: IP | None, mac: str) -> str:
        """Which pause a flow of a LAN's device falls under, for a person; "" for none. ``source`` None: this host's."""
        devices = [ALL] if source is None else [ALL, str(source), mac.lower()]
        return next((self._told(device) for device in devices if device in self._entries), "")

    def shown(self) -> list[dict[str, Any]]:
        """For ``gateway status``: device ("" is everything), name, seconds left (None: until it is resumed)."""
        now = self._loop.time()
        return [
            {"device": device, "name": entry.name, "left": None if entry.until is None else round(entry.until - now, 1)}
            for device, entry in self._entries.items()
        ]

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _told(self, device: str) -> str:
        entry = self._entries[device]
        left = "" if entry.until is None else f", {entry.until - self._loop.time():.0f} s left"
        return f"{device or 'everything'} is paused{left}"

    def _put(self, device: str, entry: Entry) -> None:
        if self._steerer is None or device == ALL:
            return
        left = 0 if entry.until is None else max(1, math.ceil(entry.until - self._loop.time()))
        self._steerer.put(kind_of(device), key_of(device), left)

    def _wait(self) -> None:
        """Until the next pause ends: the kernel forgets a device by itself, we the rule."""
        self.close()
        due = [entry.until for entry in self._entries.values() if entry.until is not None]
        self._timer = self._loop.call_at(min(due), self._expire) if due else None

    def _expire(self) -> None:
        now = self._loop.time()
        over = [device for device, entry in self._entries.items() if entry.until is not None and entry.until <= now]
        try:
            self._end(over)
        except KernelError:  # the table is gone: steering ends, and says so
            self._wait()


def identify(text: str, hostnames: dict[str, str]) -> tuple[str, str]:
    """A device, as an address, a hardware address, or the host name of a lease (``hostnames``: hardware address to
    name), and that name. Raises GatewayError."""
    try:
        return str(ip_address(text)), ""
    except ValueError:
        pass
    mac, name = text.lower().replace("-", ":"), text.lower()
    if MAC.fullmatch(mac):
        return mac, ""
    macs = [known for known, one in hostnames.items() if one == name]
    if not macs:
        raise GatewayError(f'"{text}" is no address, no hardware address, and no lease has that name')
    return macs[-1], name


def kind_of(device: str) -> Pause:
    """Which set it is in."""
    if MAC.fullmatch(device):
        return "paused_mac"
    return "all" if device == ALL else "paused6" if ":" in device else "paused4"


def key_of(device: str) -> bytes:
    return bytes.fromhex(device.replace(":", "")) if MAC.fullmatch(device) else ip_address(device).packed


__all__ = ["ALL", "Pauses", "identify"]
