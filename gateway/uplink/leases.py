"""Leases that DHCP servers have given: of our dnsmasq, and of others on this host.

Files are read as dnsmasq, odhcpd, ISC dhcpd and Kea write them::

    dnsmasq   1764140000 00:53:00:12:34:56 192.0.2.10 phone 01:00:53:00:12:34:56      dnsmasq(8), --dhcp-leasefile
    odhcpd    # br-lan 005300123456 ipv4 phone 1764140000 a 32 192.0.2.10/32            README, "statefile"
    ISC       lease 192.0.2.10 { ... hardware ethernet ...; client-hostname "phone"; }   dhcpd.leases(5)
    Kea       192.0.2.10,00:53:00:12:34:56,...,phone,0                                   memfile, columns by its header
"""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import NamedTuple

from gateway.core.address import IP
from gateway.core.contracts import Guest

PLACES = (
    "/var/lib/misc/dnsmasq.leases", "/tmp/dhcp.leases", "/var/lib/dnsmasq/dnsmasq.leases", "/tmp/odhcpd.leases",
    "/var/lib/odhcpd/dhcp.leases", "/var/lib/dhcp/dhcpd.leases", "/var/lib/kea/kea-leases4.csv",
    "/var/lib/kea/dhcp4.leases",
)  # fmt: skip
"""Where the files are on Debian, OpenWrt and others."""
LOGINS = 1000
"""Owners from this uid on (of a file, of a link to it) are not believed at those places: anybody may write to /tmp."""
MOST_BYTES = 4 << 20
"""Of one file; the rest is not read."""
MOST = 65536
"""Leases that are kept, the last ones."""
PAUSE = 1.0
"""Seconds between two looks at the files."""
MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
SECONDS = re.compile(r"-?[0-9]{1,19}")
ISC_LEASE = re.compile(r"lease ([0-9.]+) \{")
ISC_SAID = re.compile(r'\s*([a-z][a-z -]{0,40}) (?:"((?:[^"\\]|\\.)*)"|([^";]*));')
"""A client names itself: what it says is text to its closing quote, semicolons and all."""


class Lease(NamedTuple):
    """``mac``: hardware address, lower-case; ``hostname``: lower-case, "" for none; ``expiry``: seconds since 1970, 0 =
    never or not known."""

    mac: str
    address: str
    hostname: str
    expiry: int = 0


Network = IPv4Network | IPv6Network
Record = tuple[str, Lease | None]
"""An address, and its lease; None where it is nobody's, or nobody knows whose."""


def parse(text: str) -> list[Lease]:
    """What a lease file says, in its order; lines that make no sense are passed over, and so is a last one without its
    end, which is still being written. Of an address the last lease counts; released leases are left out."""
    text = text[: text.rfind("\n") + 1]
    if text.startswith("address,hwaddr"):
        found = _kea(text)
    elif text.startswith("lease ") or "\nlease " in text:
        found = _isc(text)
    else:
        found = _lines(text)
    leases: dict[str, Lease | None] = {}
    for address, lease in found:
        leases.pop(address, None)
        leases[address] = lease
    return [lease for lease in leases.values() if lease is not None]


def _lines(text: str) -> Iterator[Record]:
    for line in text.split("\n"):
        match line.split():
            case ["#", _, hardware, "ipv4", name, expiry, _, _, address, *_]:
                mac = ":".join(re.findall("..", hardware.lower()))
                found = _record(mac, address.partition("/")[0], "" if name == "-" else name, expiry)
            case [expiry, mac, address, name, *_]:
                found = _record(mac.lower(), address, "" if name == "*" else name, expiry)
            case _:
                continue
        if found[1] is not None:
            yield found


def _record(mac: str, address: str, name: str, expiry: str) -> Record:
    sound = MAC.fullmatch(mac) and SECONDS.fullmatch(expiry)
    return address, Lease(mac, address, name.lower(), max(0, int(expiry))) if sound else None


def _isc(text: str) -> Iterator[Record]:
    address, said = "", dict[str, str]()
    for line in text.split("\n"):
        if head := ISC_LEASE.match(line):
            address, said = head[1], {}
        elif line.startswith("}") and address:
            active = said.get("binding state", "active") == "active"
            mac, name = said.get("hardware ethernet", "").lower(), said.get("client-hostname", "")
            yield _record(mac, address, name, "0") if active else (address, None)
            address = ""
        elif found := ISC_SAID.match(line):
            said[found[1]] = found[2] if found[2] is not None else found[3]


def _kea(text: str) -> Iterator[Record]:
    # Kea reads no quotes either.
    for row in csv.DictReader(io.StringIO(text), quoting=csv.QUOTE_NONE):
        name = (row.get("hostname") or "").rstrip(".")
        mac, address = (row.get("hwaddr") or "").lower(), row["address"]
        held = row.get("state") == "0" and row.get("valid_lifetime") != "0"
        yield _record(mac, address, name, row.get("expire") or "") if held else (address, None)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _believed(path: Path, status: os.stat_result) -> bool:
    return status.st_uid < LOGINS or str(path) not in PLACES


def _opener(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class LeaseFiles:
    """The leases of several files and of a configuration, looked at again at most once a second."""

    def __init__(self) -> None:
        self._fixed: dict[str, str] = {}
        self._files: dict[Path, tuple[object, list[Lease]]] = {}
        self._looked = 0.0
        self._names: dict[str, str] = {}
        self._macs: dict[str, str] = {}
        self._since: dict[tuple[str, str], int] = {}
        """When a device was first seen at an address."""
        self._lengths: dict[Network, int] = {}

    def use(
        self, files: Sequence[Path], fixed: Mapping[str, str], lengths: Mapping[Network, int] | None = None
    ) -> None:
        """Read ``files`` from now on; ``fixed``: names by hardware address that stand in the configuration;
        ``lengths``: seconds that leases of these networks last."""
        self._lengths = dict(lengths or {})
        self._files = {path: self._files.get(path, (None, [])) for path in files}
        self._fixed = dict(fixed)
        self._looked = 0.0

    def leases(self) -> list[Lease]:
        """All that have not ended, later ones last."""
        self._look()
        now = time.time()
        return [lease for _, found in self._files.values() for lease in found if not 0 < lease.expiry < now]

    def guests(self) -> list[Guest]:
        """See ``core.contracts.Guests``. An address that several leases name is the last one's."""
        held = {lease.address: lease for lease in self.leases() if _is_address(lease.address)}
        found = [
            Guest(
                lease.mac, self._names.get(lease.mac, lease.hostname), lease.address, self._began(lease), lease.expiry
            )
            for lease in held.values()
        ]
        return sorted(found, key=lambda guest: (len(guest.address), int(ip_address(guest.address))))

    def _began(self, lease: Lease) -> int:
        """A lease that was given before we looked began, at the latest, one length before it ends."""
        first = self._since.get((lease.mac, lease.address), int(time.time()))
        address = ip_address(lease.address)
        length = next((seconds for network, seconds in self._lengths.items() if address in network), 0)
        return min(first, lease.expiry - length) if length and lease.expiry else first

    def hostnames(self) -> Mapping[str, str]:
        """Hardware address to host name, both lower-case. A name outlives its lease until another has it."""
        self._look()
        return self._names

    def mac(self, address: IP) -> str:
        """Of the device that holds ``address`` by the latest lease; "" for none."""
        self._look()
        return self._macs.get(str(address), "")

    def _look(self) -> None:
        now = time.monotonic()
        if self._looked and now < self._looked + PAUSE:
            return
        self._looked = now
        changed = not self._names
        for path, (before, _) in self._files.items():
            try:
                if not _believed(path, os.lstat(path)):
                    continue
                # What is no file might keep us waiting, also in being opened.
                with open(path, errors="replace", opener=_opener) as file:
                    status = os.fstat(file.fileno())
                    seen: object = (status.st_ino, status.st_mtime_ns, status.st_size)
                    if seen == before or not stat.S_ISREG(status.st_mode) or not _believed(path, status):
                        continue
                    found = parse(file.read(MOST_BYTES))[-MOST:]
            except (OSError, csv.Error):
                seen, found = None, []
                if before is None:
                    continue
            self._files[path] = (seen, found)
            changed = True
        if changed:
            leases = [lease for _, found in self._files.values() for lease in found]
            self._macs = {lease.address: lease.mac for lease in leases}
            self._names = {lease.mac: lease.hostname for lease in leases if lease.hostname} | self._fixed
            began = int(time.time())
            self._since = {key: self._since.get(key, began) for key in ((one.mac, one.address) for one in leases)}
