"""What a server grants: the lease, read out of a reply with every value checked or repaired, and its file format. Pure.

Times are seconds of CLOCK_BOOTTIME (it counts suspended time), ``math.inf`` where the lease never ends. The file holds
wall-clock times beside them, for a start after a reboot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from gateway.uplink.dhcp4 import codec
from gateway.uplink.dhcp4.codec import Message, Option, Route

FLOOR = 30
"""Shortest lease believed, in seconds; a lease of 0 or 1 would make the client a flood."""
T1_FLOOR = 3
INFINITE = 0xFFFFFFFF
FALLBACK = 3600
"""Lease time where an ACK names none."""
MIN_MTU = 576
DEFAULT = IPv4Network("0.0.0.0/0")


@dataclass(frozen=True, slots=True)
class Lease:
    """One granted address and all that came with it. ``routes`` is what to install, default route included (RFC 3442:
    classless routes replace options 3 and 33); ``mtu`` 0 = the server did not say. 0 < t1 < t2 < expiry."""

    address: IPv4Address
    prefix: int
    server: IPv4Address
    t1: float
    t2: float
    expiry: float
    routers: tuple[IPv4Address, ...] = ()
    dns: tuple[IPv4Address, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    mtu: int = 0
    routes: tuple[Route, ...] = ()

    @property
    def network(self) -> IPv4Network:
        return IPv4Network((self.address, self.prefix), strict=False)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Search list: option 119, else option 15."""
        return self.search or ((self.domain,) if self.domain else ())


def usable(ip: IPv4Address) -> bool:
    """Whether a host can have this address."""
    return 0 < int(ip) >> 24 < 224 and not ip.is_loopback


def server_of(message: Message, source: IPv4Address) -> IPv4Address:
    """Option 54; where a server leaves it out or writes 0.0.0.0: siaddr, else the packet's source."""
    named = codec.address(message.options.get(Option.SERVER_ID, b""))
    for ip in (named, message.siaddr, source):
        if ip is not None and usable(ip):
            return ip
    return codec.ANY


Read = Callable[[int, Callable[[bytes], Any]], Any]
"""An option's code and its reader in ``codec`` -> its value; None where it is absent or not usable."""


def reader(message: Message, bad: Callable[[str], None]) -> Read:
    """``bad`` is told of each option left unused."""

    def read(code: int, form: Callable[[bytes], Any]) -> Any:
        data = message.options.get(code)
        value = form(data) if data is not None else None
        if data is not None and value is None:
            bad(f"option {code}")
        return value

    return read


def names_of(read: Read) -> tuple[tuple[IPv4Address, ...], str, tuple[str, ...]]:
    """Name servers, domain and search list; empty where there is none."""
    return (
        tuple(dict.fromkeys(ip for ip in read(Option.DNS, codec.addresses) or () if usable(ip))),
        read(Option.DOMAIN, lambda data: codec.text(data.split(b" ")[0])) or "",
        read(Option.SEARCH, codec.search) or (),
    )


def lease_of(
    message: Message,
    server: IPv4Address,
    sent: float,
    random: Callable[[], float],
    *,
    add_router: bool = False,
    bad: Callable[[str], None] = lambda reason: None,
) -> Lease:
    """The lease an ACK grants, counted from ``sent``, when its request left. ``random`` is in [0, 1): +-1 s of fuzz on
    T1 and T2. ``add_router``: options 3 and 33 count beside classless routes. ``bad`` is told of each option left
    unused. The caller has checked that yiaddr is usable."""
    read = reader(message, bad)
    prefix = read(Option.MASK, codec.mask_length) or codec.classful(message.yiaddr)
    routers = tuple(ip for ip in read(Option.ROUTER, codec.addresses) or () if usable(ip) and ip != message.yiaddr)
    classless = read(Option.CLASSLESS_ROUTE, codec.classless_routes)
    if classless is None:
        classless = read(Option.CLASSLESS_ROUTE_MS, codec.classless_routes)
    static = read(Option.STATIC_ROUTE, codec.static_routes) or ()
    mtu = read(Option.MTU, lambda data: codec.number(data, 2)) or 0
    dns, domain, search = names_of(read)
    t1, t2, lifetime = _times(message, random)
    return Lease(
        address=message.yiaddr,
        prefix=prefix,
        server=server,
        t1=sent + t1,
        t2=sent + t2,
        expiry=sent + lifetime,
        routers=routers,
        dns=dns,
        domain=domain,
        search=search,
        mtu=mtu if mtu >= MIN_MTU else 0,
        routes=_routes(classless, static, routers, add_router),
    )


def _routes(
    classless: tuple[Route, ...] | None, static: Iterable[Route], routers: tuple[IPv4Address, ...], add_router: bool
) -> tuple[Route, ...]:
    """One route a destination, the first wins."""
    wanted = list(classless or ())
    if classless is None or add_router:
        wanted += static
        if routers:
            wanted.append(Route(DEFAULT, routers[0]))
    chosen: dict[IPv4Network, Route] = {}
    for route in wanted:
        if route.gateway is None or usable(route.gateway):
            chosen.setdefault(route.destination, route)
    return tuple(chosen.values())


def _times(message: Message, random: Callable[[], float]) -> tuple[float, float, float]:
    """T1, T2 and lease time in seconds: 0 < T1 < T2 < lease, else RFC 2131's 0.5 and 0.875."""

    def read(code: int) -> int | None:
        return codec.number(message.options.get(code, b""), 4)

    lifetime = read(Option.LEASE_TIME)
    if lifetime is None:
        lifetime = FALLBACK
    if lifetime == INFINITE:
        return math.inf, math.inf, math.inf
    lifetime = max(lifetime, FLOOR)
    t1, t2 = read(Option.T1), read(Option.T2)
    fuzz = random() * 2 - 1
    if t1 is not None and t2 is not None and T1_FLOOR <= t1 < t2 < lifetime:
        return t1 + (fuzz if t1 > 30 and t1 + 1 < t2 else 0), t2, lifetime
    return lifetime * 0.5 + fuzz, lifetime * 0.875 + fuzz, lifetime


def to_json(lease: Lease, hardware: bytes, boot: str, now: float, wall: float) -> str:
    """The lease file's text. ``boot`` is the kernel's boot id, ``now`` CLOCK_BOOTTIME, ``wall`` seconds since 1970."""

    def both(at: float) -> list[float] | None:
        return None if math.isinf(at) else [at, wall + at - now]

    return json.dumps({
        "version": 1, "boot": boot, "hardware": hardware.hex(),
        "address": f"{lease.address}/{lease.prefix}", "server": str(lease.server),
        "t1": both(lease.t1), "t2": both(lease.t2), "expiry": both(lease.expiry),
        "routers": [str(ip) for ip in lease.routers], "dns": [str(ip) for ip in lease.dns],
        "domain": lease.domain, "search": lease.search, "mtu": lease.mtu,
        "routes": [[str(route.destination), str(route.gateway or "")] for route in lease.routes],
    }, indent=1)  # fmt: skip


def from_json(text: str, hardware: bytes, boot: str, now: float, wall: float) -> Lease | None:
    """The lease of a file, its times in this boot's clock; None where the file is corrupt, of another card, or its
    lease has ended. Never raises on any text."""
    try:
        data = json.loads(text)
        if data["version"] != 1 or bytes.fromhex(data["hardware"]) != hardware:
            return None

        def at(value: list[float] | None) -> float:
            if value is None:
                return math.inf
            there, on_the_wall = float(value[0]), float(value[1])
            moment = there if data["boot"] == boot else on_the_wall - wall + now
            if not math.isfinite(moment):
                raise ValueError
            return moment

        address, _, prefix = data["address"].partition("/")
        lease = Lease(
            IPv4Address(address), int(prefix), IPv4Address(data["server"]),
            at(data["t1"]), at(data["t2"]), at(data["expiry"]),
            tuple(IPv4Address(ip) for ip in data["routers"]), tuple(IPv4Address(ip) for ip in data["dns"]),
            codec.text(data["domain"].encode()) or "",
            tuple(filter(None, (codec.text(name.encode()) for name in data["search"]))), int(data["mtu"]),
            tuple(Route(IPv4Network(str(to)), IPv4Address(via) if via else None) for to, via in data["routes"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError):
        return None
    sound = 0 < lease.prefix <= 32 and usable(lease.address) and now < lease.expiry and lease.t1 <= lease.t2
    return lease if sound and lease.t2 <= lease.expiry else None
