"""A small world and random rules over it: few values of all that a rule asks, both sides of every edge among them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain, combinations, product
from typing import Any

from gateway.core.flow import Device, Process
from gateway.kernel.plan import Verdict
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.engine import Engine
from gateway.route.item.adguard_domain import AdGuardDomain
from gateway.route.match import Default, Rule
from gateway.route.options import RouteConfig, parse_headless, parse_route

KINDS: dict[str, Any] = {
    "direct": "direct", "direct2": "direct", "select": "direct", "block": "block", "vps": "proxy", "vps2": "proxy",
    "urltest": "proxy",
}  # fmt: skip
"""Of a group what it has chosen."""
USERS = {"root": 0, "alice": 1000, "bob": 1001}
GROUPS = {"root": 0, "users": 100, "vpn": 200}
FINAL = ("direct", "direct", "select", "vps", "vps2", "block")
V4 = ("192.0.2.1", "192.0.2.127", "192.0.2.128", "192.0.2.255", "192.0.3.0", "198.51.100.6", "198.51.100.7",
      "198.51.100.8", "10.1.2.3", "203.0.113.9")  # fmt: skip
V6 = ("2001:db8::1", "2001:db8:0:ffff:ffff:ffff:ffff:ffff", "2001:db8:1::", "fd00::1")
SOURCES = ("192.168.7.255", "192.168.8.2", "192.168.8.63", "192.168.8.64", "192.168.8.127", "192.168.8.128",
           "192.168.9.0", "2001:db8:8::2", "2001:db8:8:ffff:ffff:ffff:ffff:ffff", "2001:db8:9::")  # fmt: skip
LOCAL = ("127.0.0.1", "203.0.113.200", "fd00::5", *SOURCES, *V4, *V6)
"""Whatever an address item can ask of a source."""
PORTS = (25, 53, 80, 100, 101, 399, 400, 443, 853, 900, 901, 7999, 8000, 8080)
SOURCE_PORTS = (1024, 2000, 29999, 30000, 40000, 45000, 45001, 50000, 60000)
LABELS = ("a", "b", "c", "ab", "d")
ENDS = ("x", "y", "z", "q")
SHORT = tuple(".".join(parts) for size in (0, 1, 2) for front in product(LABELS, repeat=size) for end in ENDS
              for parts in ((*front, end),))  # fmt: skip
NAMES = tuple(front + name for front in ("", "r1.", "q9.", "q9.r1.") for name in (*SHORT, "a", "b", "ab"))
"""For every answer that the name items below can give together one that gives it."""
IDS = (38, *GROUPS.values())
KNOWN_PATHS = ("/usr/bin/curl", "/opt/curl", "/usr/bin/ssh", "/usr/sbin/ntpd", "/opt/game")
PATHS = tuple(f"{folder}/{name}" for folder in ("/usr/bin", "/opt", "/bin", "/usr/sbin")
              for name in ("curl", "xcurl", "ssh", "game", "ntpd", "other"))  # fmt: skip
"""For every answer that the expressions below can give together, of a program that no other item names."""


CGROUPS = ("", "/", "/user", "/user/alice", "/user/alice/shell", "/system/ntp")


def process(path: str, uid: int, gids: tuple[int, ...], cgroup: str = "/user/bob") -> Process:
    user = next((name for name, number in USERS.items() if number == uid), "")
    groups = tuple(name for name, number in GROUPS.items() if number in gids)
    return Process(path, uid, user, gids, groups=groups, cgroup=cgroup)


PROCESSES = tuple(
    process(path, uid, gids)
    for path in PATHS
    for uid in (38, *USERS.values())
    for gids in chain.from_iterable(combinations(IDS, size) for size in range(len(IDS) + 1))
)
MACS = ("00:53:00:00:00:01", "00:53:00:00:00:02", "00:53:00:00:00:03", "00:53:00:00:00:04")
HOSTNAMES = {MACS[1]: "phone", MACS[2]: "tv", MACS[3]: "printer"}
DEVICES = tuple(
    Device(mac, interface, HOSTNAMES.get(mac, "")) for mac in ("", *MACS) for interface in ("lan", "guest", "office")
)
PROTOCOLS = {"tcp": ("tls", "http", "dns"), "udp": ("quic", "dns")}
CLIENTS = ("", "chromium", "firefox", "quic-go")
NAMED = ("tls", "http", "quic")
POOL: dict[str, Any] = {
    "domain": ("a.x", "b.x", "x", "a.y", "c.z"),
    "domain_suffix": ("x", "y", ".x", "a.x", ".b.x", "b.y"),
    "domain_keyword": ("a", "b", "ab"),
    "domain_regex": (r"r[0-9]+\.",),
    "ip_cidr": ("192.0.2.0/24", "192.0.2.128/25", "198.51.100.7", "2001:db8::/48", "0.0.0.0/0"),
    "ip_is_private": True,
    "ip_version": (4, 6),
    "network": ("tcp", "udp"),
    "port": PORTS,
    "port_range": (":100", "400:900", "8000:"),
    "source_ip_cidr": ("192.168.8.0/24", "192.168.8.64/26", "2001:db8:8::/48"),
    "source_ip_is_private": True,
    "source_port": (1024, 40000, 50000),
    "source_port_range": ("30000:45000", "45000:"),
    "protocol": ("tls", "http", "quic", "dns"),
    "client": CLIENTS[1:],
    "process_name": ("curl", "ssh", "game"),
    "process_path": ("/usr/bin/curl", "/opt/curl", "/usr/bin/ssh"),
    "process_path_regex": ("^/opt/", "curl$"),
    "user": ("root", "alice"),
    "user_id": (0, 1000, 38),
    "group": ("root", "users", "vpn", "nobody-has-it"),
    "group_id": (0, 38, 200),
    "cgroup": ("/", "/user", "/user/alice", "/system", "/user/alic"),
    "inbound": ("gateway", "socks-in"),
    "auth_user": ("alice",),
    "source_mac_address": MACS[:3],
    "source_hostname": ("phone", "tv", "nobody"),
    "source_interface": ("lan", "guest"),
    "query_type": ("A", "AAAA"),
}
SINGLE = ("ip_version", "network")
HEADLESS = (
    "domain", "domain_suffix", "domain_keyword", "domain_regex", "ip_cidr", "network", "port", "port_range",
    "source_ip_cidr", "source_port", "source_port_range", "process_name", "process_path", "query_type",
)  # fmt: skip
ROUTE = tuple(key for key in POOL if key != "query_type")
LIKELY = ("domain", "domain_suffix", "ip_cidr", "port", "protocol", "ip_cidr", "domain_suffix", "domain")
RARE = {"process_path_regex": 0.2, "inbound": 0.5, "auth_user": 0.3}
ENDING = ("direct", "direct", "select", "vps", "vps2", "urltest", "direct2", "block")


def some(rng: random.Random, pool: tuple[Any, ...], most: int = 2) -> list[Any]:
    return rng.sample(pool, rng.randint(1, min(most, len(pool))))


@dataclass(frozen=True)
class World:
    """What rules may ask, and with which values."""

    pool: dict[str, Any] = field(default_factory=lambda: POOL)
    without: frozenset[str] = frozenset()
    likely: tuple[str, ...] = LIKELY

    def item(self, rng: random.Random, key: str) -> Any:
        pool = self.pool[key]
        return pool if pool is True else rng.choice(pool) if key in SINGLE else some(rng, pool)

    def condition(self, rng: random.Random, depth: int = 0, headless: bool = False) -> dict[str, Any]:
        if depth < 2 and rng.random() < 0.15:
            rules = [self.condition(rng, depth + 1, headless) for _ in range(rng.randint(1, 3))]
            rule: dict[str, Any] = {"type": "logical", "mode": rng.choice(("and", "or")), "rules": rules}
        else:
            keys = tuple(key for key in (HEADLESS if headless else ROUTE) if key not in self.without)
            picked = {rng.choice(self.likely if rng.random() < 0.6 else keys) for _ in range(rng.choice((1, 1, 2, 3)))}
            picked = {key for key in sorted(picked) if key in keys and rng.random() < RARE.get(key, 1)}
            rule = {key: self.item(rng, key) for key in sorted(picked)}
            if not headless and rng.random() < 0.25:
                rule["rule_set"] = some(rng, ("s1", "s2", "s3"))
                if rng.random() < 0.2:
                    rule["rule_set_ip_cidr_match_source"] = True
            if not rule:
                rule = {"domain_suffix": "x"}
        if rng.random() < 0.15:
            rule["invert"] = True
        return rule

    def rule_sets(self, rng: random.Random) -> list[dict[str, Any]]:
        """Inline, ``s1`` to ``s3``."""
        return [
            {"tag": tag, "type": "inline", "rules": [self.condition(rng, 1, True) for _ in range(rng.randint(1, 3))]}
            for tag in ("s1", "s2", "s3")
        ]


@dataclass
class Case:
    raw: dict[str, Any]
    mode: str
    route: RouteConfig
    sets: dict[str, tuple[Rule, ...]]
    engine: Engine
    compiled: Compiled


def configuration(
    rng: random.Random, mode: Any = "strict", *, bypass: float = 0.0, world: World | None = None, overrides: bool = True
) -> Case:
    """``bypass``: share of the routing rules that are bypasses instead."""
    world = world or World()
    rules: list[dict[str, Any]] = []
    if rng.random() < 0.2:  # nothing but names, to be sniffed: what goes together?
        world = replace(world, likely=("domain", "domain_suffix"))
        rules.append({"action": "sniff"})
    for _ in range(rng.randint(1, 6)):
        rule = world.condition(rng)
        kind = rng.random()
        if kind < 0.25:
            rule = {"action": "sniff"} if rng.random() < 0.6 else {**rule, "action": "sniff"}
            if rng.random() < 0.2:
                rule["sniffer"] = some(rng, ("tls", "http", "quic", "dns"))
        elif kind < 0.3:
            rule |= {"action": "reject", "method": rng.choice(("default", "drop"))}
        elif kind < 0.34:
            rule |= {"action": "hijack-dns"}
        elif kind < 0.37:
            rule |= {"action": "route-options", "udp_connect": True}
        elif kind < 0.38 and overrides:
            rule |= {"action": "route-options", "override_address": rng.choice(("203.0.113.77", "far.q"))}
        elif kind < 0.40:
            rule |= {"action": "resolve"}
        else:
            rule |= {"outbound": rng.choice(ENDING)}
            if rng.random() < 0.03 and overrides:
                rule["override_port"] = 4444
            elif rng.random() < bypass:
                rule["action"] = "bypass"
                if rng.random() < 0.7:
                    del rule["outbound"]
        rules.append(rule)
    raw = {"rules": rules, "rule_set": world.rule_sets(rng)}
    # Only binary rule sets hold these, so no JSON does.
    adguard = [entry["tag"] for entry in raw["rule_set"] if rng.random() < 0.05 and not world.without]
    return build(raw, rng.choice(FINAL), mode, adguard)


def build(raw: dict[str, Any], final: str, mode: Any = "strict", adguard: list[str] | None = None) -> Case:
    """``adguard``: rule sets that hold every name that begins with ``q9.`` besides."""
    route = parse_route(raw)
    sets = {entry.tag: tuple(parse_headless(rule, "") for rule in entry.rules) for entry in route.rule_set}
    for tag in adguard or ():
        sets[tag] = (Default([AdGuardDomain(frozenset({"q9.*"}))]), *sets[tag])
    engine = Engine(route.rules, final, sets)
    more = {"adguard": adguard} if adguard else {}
    return Case({**raw, "final": final, "mode": mode, **more}, mode, route, sets, engine, compiled(engine, mode))


def compiled(engine: Engine, mode: Any) -> Compiled:
    inputs = Inputs(KINDS, users=USERS, groups=GROUPS, hostnames=HOSTNAMES, mode=mode)
    return compile_rules(engine.rules, engine.final, engine.sets, inputs)


@dataclass(frozen=True)
class Key:
    """What a packet shows. ``source`` and ``device`` of a forwarded flow, else ``process``; without either a socket
    that BPF could not tell. ``names``: learned, each as if it were the one that this client resolved last."""

    network: Any
    port: int
    address: IPv4Address | IPv6Address
    source: IPv4Address | IPv6Address | None = None
    process: Process | None = None
    names: tuple[str, ...] = ()
    device: Device | None = None
    met: bool = True
    """Userspace has judged the executable and the cgroup of ``process``."""


LIKELY_PORTS = (53, 80, 443, 443, 8080)
LIKELY_NAMES = ("a.x", "b.x", "x", "a.y", "c.z", "b.y", "c.a.x", "a.b.x", "q.q", "d.d.d")


def keys(rng: random.Random, count: int) -> list[Key]:
    found = []
    for _ in range(count):
        address = ip_address(rng.choice(V4 if rng.random() < 0.7 else V6))
        network, port = rng.choice(("tcp", "udp")), rng.choice(PORTS if rng.random() < 0.5 else LIKELY_PORTS)
        names = tuple(rng.choice(LIKELY_NAMES if rng.random() < 0.7 else NAMES)
                      for _ in range(rng.choice((0, 0, 1, 1, 2, 2))))  # fmt: skip
        kind = rng.random()
        if kind < 0.6:
            sources = [source for source in map(ip_address, SOURCES) if source.version == address.version]
            found.append(Key(network, port, address, rng.choice(sources), None, names, rng.choice(DEVICES)))
        elif kind < 0.97:
            gids = tuple(some(rng, IDS, 3))
            one = process(rng.choice(KNOWN_PATHS), rng.choice((38, *USERS.values())), gids, rng.choice(CGROUPS))
            found.append(Key(network, port, address, None, one, names, met=rng.random() < 0.8))
        else:
            found.append(Key(network, port, address, None, None, names))
    return found


def socket_mask(compiled: Compiled, process: Process) -> int:
    """As the cgroup program computes it."""
    plan = compiled.processes
    mask = dict(plan.paths).get(process.path, 0) | dict(plan.names).get(process.name, 0)
    mask |= dict(plan.uids).get(process.uid, 0)
    for gid in process.gids:
        mask |= dict(plan.gids).get(gid, 0)
    return mask | plan.judged(process.path) | plan.placed(process.cgroup)


def unmet(compiled: Compiled, process: Process) -> bool:
    """Whether the program leaves a socket to userspace before that has judged executable and cgroup."""
    plan = compiled.processes
    mask = socket_mask(compiled, process)
    if process.path not in dict(plan.paths):
        mask &= ~plan.judged(process.path)
    mask &= ~plan.placed(process.cgroup)
    wanted = sum(bits for _, bits in plan.expressions if process.path not in dict(plan.paths))
    for _, bits in plan.cgroups:
        wanted |= bits
    return bool(wanted & ~mask)


def unknown(compiled: Compiled, key: Key) -> bool:
    """Whether BPF cannot tell whose socket it is."""
    return key.process is None or (not key.met and unmet(compiled, key.process))


def socket_class(compiled: Compiled, key: Key) -> int:
    if key.process is None or unknown(compiled, key):
        return 30
    return dict(compiled.processes.classes).get(socket_mask(compiled, key.process), 30)


def kernel(compiled: Compiled, key: Key) -> Verdict:
    family: Any = key.address.version
    where = (key.network, key.port, family, int(key.address))
    if key.source is not None:
        device = ("", "") if key.device is None else (key.device.interface, key.device.mac)
        return compiled.lookup(*where, source=int(key.source), device=device, names=key.names)[1]
    return compiled.lookup(*where, socket=socket_class(compiled, key), names=key.names)[1]
