"""A household's and a server's traffic over the real lists of names and countries: the same for the same seed.

Names are popular as Zipf says, a part of them lives at shared addresses (content delivery), some of those beside names
of another list. What is looked up through us is learned for a while; what is not has only its address.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import accumulate
from typing import Any, Literal

from gateway.core.flow import Process
from gateway.route.item.domain import Domain
from gateway.route.item.domain_suffix import DomainSuffix
from gateway.route.item.ipset import IPSet
from gateway.route.learned import GRACE
from gateway.route.match import Rule, items

IP = IPv4Address | IPv6Address
SITES = 1500
LISTS = (
    ("geosite-cn", "geoip-cn", 30), ("geosite-geolocation-!cn", "geoip-us", 18), ("geosite-google", "geoip-us", 9),
    ("geosite-youtube", "geoip-us", 7), ("geosite-netflix", "geoip-jp", 3), ("geosite-github", "geoip-us", 3),
    ("geosite-telegram", "geoip-jp", 1), ("geosite-category-ads-all", "geoip-us", 6),
    ("geosite-category-ads-all", "geoip-cn", 3), ("", "geoip-cn", 10), ("", "geoip-jp", 5), ("", "geoip-us", 5),
)  # fmt: skip
"""Names from, at addresses from, weight. "": names that no list has."""
OWN, SHARED, MIXED = 0.2, 0.05, 0.002
"""Shares of names at the address of another: a name of the same domain, one of the same list, any."""
RATE, TTL = 1.0, 300.0
"""Flows a second, and seconds that an answer is good for; GRACE is what we add."""
SERVICES: tuple[tuple[Literal["tcp", "udp"], int, str, int], ...] = (
    ("tcp", 443, "tls", 62), ("udp", 443, "quic", 20), ("tcp", 80, "http", 6), ("udp", 123, "", 2),
    ("udp", 3478, "", 2), ("tcp", 993, "tls", 1), ("tcp", 22, "", 1), ("tcp", 5222, "", 2), ("tcp", 8443, "tls", 2),
    ("tcp", 465, "", 1), ("udp", 50000, "", 1),
)  # fmt: skip
"""Network, port, protocol that shows a name, weight."""
DEVICES = {
    "192.168.8.10": 30, "192.168.8.11": 25, "192.168.8.20": 6, "192.168.8.21": 10, "192.168.8.30": 12,
    "192.168.8.40": 8, "192.168.8.130": 9,
}  # fmt: skip
"""IPv4 source and weight; 2001:db8:8:: with the last number is its IPv6 source. A list that asks for hardware addresses
would find them here too."""
PROGRAMS = {
    Process("/usr/sbin/apache2", 33, "www-data", (33,)): 20, Process("/usr/bin/curl", 0, "root", (0,)): 10,
    Process("/usr/sbin/chronyd", 116, "_chrony", (116,)): 5, Process("/usr/bin/git", 1001, "alice", (1001,)): 8,
    Process("/usr/bin/firefox", 1001, "alice", (1001,)): 25, Process("/usr/bin/firefox", 1002, "bob", (1002,)): 17,
    Process("/usr/bin/qbittorrent-nox", 1002, "bob", (1002,)): 15,
}  # fmt: skip


@dataclass
class Site:
    name: str
    addresses: dict[int, IP] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One flow. ``looked_up``: through us. ``owners``: names that are learned of its address, the last one first."""

    network: Literal["tcp", "udp"]
    address: IP
    port: int
    protocol: str
    name: str
    source: str
    source_port: int
    process: Process | None
    looked_up: bool
    owners: tuple[str, ...]


Sets = Mapping[str, Sequence[Rule]]


def pick(rng: random.Random, weights: Mapping[Any, int]) -> Any:
    return rng.choices(list(weights), list(weights.values()))[0]


def names_of(rules: Sequence[Rule]) -> list[str]:
    found: set[str] = set()
    for rule in rules:
        for item in items(rule):
            if isinstance(item, Domain):
                found |= item.set
            elif isinstance(item, DomainSuffix):
                found |= {("www" + one) if one.startswith(".") else one for one in item.set}
    return sorted(found)


def ranges_of(rules: Sequence[Rule], family: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for rule in rules:
        for item in items(rule):
            if item.key == "ip_cidr":
                held: IPSet = item.set  # type: ignore[attr-defined]
                found += held.ranges(family)
    return found


class Country:
    """Addresses of a list, each as likely as its neighbour (IPv6: each range)."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.four, self.six = ranges_of(rules, 4), ranges_of(rules, 6)
        self.sizes = list(accumulate(last - first + 1 for first, last in self.four))

    def address(self, rng: random.Random, family: int) -> IP:
        if family == 4:
            first, last = rng.choices(self.four, cum_weights=self.sizes)[0]
            return IPv4Address(rng.randint(first, last))
        first, last = rng.choice(self.six)
        return IPv6Address(rng.randint(first, last))


class Traffic:
    """``sets``: every list of ``LISTS`` by its name."""

    def __init__(self, sets: Sets, seed: int) -> None:
        self.rng = random.Random(seed)
        self.countries = {where: Country(sets[where]) for _, where, _ in LISTS}
        known = {tag: names_of(sets[tag]) for tag, _, _ in LISTS if tag}
        self.sites: list[Site] = []
        by_list: dict[tuple[str, str], list[Site]] = {}
        kinds = {(tag, where): weight for tag, where, weight in LISTS}
        for number in range(SITES):
            tag, where = kind = pick(self.rng, kinds)
            name = self.rng.choice(known[tag]) if tag else f"www.site{number}.example"
            if tag and self.rng.random() < 0.5:
                name = self.rng.choice(("www", "api", "img1", "static")) + "." + name
            neighbours = by_list.setdefault(kind, [])
            site = Site(name)
            where_else = self.rng.random()
            if self.sites and where_else < MIXED:
                site.addresses = self.rng.choice(self.sites).addresses
            elif neighbours and where_else < MIXED + SHARED:
                site.addresses = self.rng.choice(neighbours).addresses
            elif neighbours and where_else < MIXED + SHARED + OWN:
                other = self.rng.choice(neighbours)
                site = Site(f"n{number}.{other.name}", other.addresses)
            else:
                site.addresses = {4: self.countries[where].address(self.rng, 4)}
                if self.rng.random() < 0.5:
                    site.addresses[6] = self.countries[where].address(self.rng, 6)
            neighbours.append(site)
            self.sites.append(site)
        self.owners: dict[IP, dict[str, float]] = {}
        """Address to its names, the last one last, each with the second at which it is forgotten."""
        self.now = 0.0
        self.popular = list(accumulate(1 / (rank + 1) ** 0.9 for rank in range(SITES)))

    def flows(self, count: int, *, local: bool = False) -> Iterator[Seen]:
        """``local``: of the programs of a server, else of the devices of a LAN."""
        rng = self.rng
        services = {entry[:3]: entry[3] for entry in SERVICES}
        for _ in range(count):
            process = pick(rng, PROGRAMS) if local else None
            device = "192.0.2.10" if local else pick(rng, DEVICES)
            network, port, protocol = pick(rng, services)
            name, looked_up = "", False
            self.now += rng.expovariate(RATE)
            if rng.random() < 0.06:  # a peer that nobody has looked up
                address = rng.choice(list(self.countries.values())).address(rng, 4 if rng.random() < 0.8 else 6)
                network, port, protocol = rng.choice(("tcp", "udp")), rng.randint(10000, 60000), ""
            else:
                site = rng.choices(self.sites, cum_weights=self.popular)[0]
                address = site.addresses[6 if 6 in site.addresses and rng.random() < 0.6 else 4]
                name, looked_up = site.name, rng.random() < 0.9  # else the client asks a server of its own
                if looked_up:
                    self.learn(site)
            owners = tuple(one for one, end in reversed(self.owners.get(address, {}).items()) if end > self.now)
            source = device
            if address.version == 6:
                source = "2001:db8:8::" + device.rpartition(".")[2]
            yield Seen(network, address, port, protocol, name if protocol else "", source, rng.randint(32768, 60999),
                       process, looked_up, owners)  # fmt: skip

    def learn(self, site: Site) -> None:
        for address in site.addresses.values():
            owners = self.owners.setdefault(address, {})
            owners.pop(site.name, None)
            owners[site.name] = self.now + TTL + GRACE
