"""Small random configurations, and what the engine says of every completion of a key: the judge of the compiler."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from gateway.core.address import Address
from gateway.core.flow import Findings, Flow, Process
from gateway.kernel.plan import Verdict
from gateway.route.compile import Compiled, Inputs, compile_rules
from gateway.route.engine import Decision, Engine, SniffRequest
from gateway.route.match import Rule
from gateway.route.options import RouteConfig, parse_headless, parse_route

KINDS: dict[str, Any] = {"direct": "direct", "direct2": "direct", "block": "block", "vps": "proxy", "vps2": "proxy"}
USERS = {"root": 0, "alice": 1000, "bob": 1001}
GROUPS = {"root": 0, "users": 100, "vpn": 200}
FINAL = ("direct", "vps", "vps2", "block")
V4 = ("192.0.2.1", "192.0.2.130", "198.51.100.7", "10.1.2.3", "203.0.113.9")
V6 = ("2001:db8::1", "2001:db8:1::1", "fd00::1")
SOURCES = ("192.168.8.2", "192.168.8.77", "192.168.9.1", "2001:db8:8::2", "2001:db8:9::2")
LOCAL = ("127.0.0.1", "192.168.8.1", "192.168.8.100", "203.0.113.200", "2001:db8:8::1", "2001:db8:9::1", "fd00::5")
LOCAL += V4 + V6  # whatever an address item can ask of a source
PORTS = (25, 53, 80, 443, 853, 8080)
SOURCE_PORTS = (1024, 40000, 50000)
NAMES = tuple(
    ".".join(parts)
    for parts in (
        ("x",), ("y",), ("z",), ("a", "x"), ("b", "x"), ("c", "x"), ("a", "y"), ("b", "y"), ("c", "y"), ("c", "z"),
        ("a", "z"), ("b", "z"), ("c", "a", "x"), ("c", "b", "x"), ("c", "a", "y"), ("c", "b", "y"), ("a", "a", "x"),
        ("b", "a", "x"), ("b", "b", "x"), ("a", "b", "x"), ("a", "c", "z"), ("b", "c", "z"), ("a", "b", "y"),
        ("b", "a", "y"), ("a", "c", "x"), ("b", "c", "x"), ("ab", "x"), ("ab", "y"), ("ab", "z"), ("q", "q"),
        ("d", "d", "d"), ("a",), ("b",), ("a", "b", "z"), ("a", "a", "y"), ("b", "b", "y"), ("a", "c", "y"),
        ("b", "c", "y"), ("ab", "a", "x"), ("ab", "b", "x"), ("ab", "a", "y"), ("ab", "b", "y"),
    )
)  # fmt: skip
PROCESSES = (
    Process("/usr/bin/curl", 0, "root", (0,), groups=("root",), cgroup="/"),
    Process("/usr/bin/curl", 1000, "alice", (100, 200, 38), groups=("users", "vpn"), cgroup="/user/alice/shell"),
    Process("/opt/curl", 1000, "alice", (100,), groups=("users",), cgroup="/user/alice"),
    Process("/usr/bin/ssh", 1001, "bob", (100, 38, 0), groups=("users", "root"), cgroup="/user"),
    Process("/usr/sbin/ntpd", 38, "", (38,), cgroup="/system/ntp"),
    Process("/opt/game", 1001, "bob", (200,), groups=("vpn",), cgroup="/user/bob"),
)  # fmt: skip
PATHS = (
    "/usr/bin/curl", "/opt/curl", "/usr/bin/ssh", "/opt/ssh", "/opt/game", "/usr/bin/game", "/bin/xcurl", "/opt/xcurl",
    "/bin/other", "/opt/other",
)  # fmt: skip
PROTOCOLS = {"tcp": ("tls", "http", "dns"), "udp": ("quic", "dns")}
NAMED = ("tls", "http", "quic")


def some(rng: random.Random, pool: tuple[Any, ...], most: int = 2) -> list[Any]:
    return rng.sample(pool, rng.randint(1, min(most, len(pool))))


def pools(rng: random.Random) -> dict[str, Any]:
    return {
        "domain": lambda: some(rng, ("a.x", "b.x", "x", "a.y", "c.z")),
        "domain_suffix": lambda: some(rng, ("x", "y", ".x", "a.x", ".b.x", "b.y")),
        "domain_keyword": lambda: some(rng, ("a", "b", "ab")),
        "ip_cidr": lambda: some(rng, ("192.0.2.0/24", "192.0.2.128/25", "198.51.100.7", "2001:db8::/48", "0.0.0.0/0")),
        "ip_is_private": lambda: True,
        "ip_version": lambda: rng.choice((4, 6)),
        "network": lambda: rng.choice(("tcp", "udp")),
        "port": lambda: some(rng, PORTS),
        "port_range": lambda: some(rng, (":100", "400:900", "8000:")),
        "source_ip_cidr": lambda: some(rng, ("192.168.8.0/24", "192.168.8.64/26", "2001:db8:8::/48")),
        "source_ip_is_private": lambda: True,
        "source_port": lambda: some(rng, SOURCE_PORTS),
        "source_port_range": lambda: some(rng, ("30000:45000", "45000:")),
        "protocol": lambda: some(rng, ("tls", "http", "quic", "dns")),
        "process_name": lambda: some(rng, ("curl", "ssh", "game")),
        "process_path": lambda: some(rng, ("/usr/bin/curl", "/opt/curl", "/usr/bin/ssh")),
        "process_path_regex": lambda: some(rng, ("^/opt/", "curl$")),
        "user": lambda: some(rng, ("root", "alice")),
        "user_id": lambda: some(rng, (0, 1000, 38)),
        "group": lambda: some(rng, ("root", "users", "vpn", "nobody-has-it")),
        "group_id": lambda: some(rng, (0, 38, 200)),
        "cgroup": lambda: some(rng, ("/", "/user", "/user/alice", "/system", "/user/alic")),
        "inbound": lambda: some(rng, ("gateway", "socks-in")),
    }


HEADLESS = (
    "domain", "domain_suffix", "domain_keyword", "ip_cidr", "network", "port", "source_ip_cidr", "source_port",
    "process_name",
)  # fmt: skip
LIKELY = ("domain", "domain_suffix", "ip_cidr", "port", "protocol", "ip_cidr", "domain_suffix")


def condition(rng: random.Random, depth: int = 0, headless: bool = False) -> dict[str, Any]:
    if depth < 2 and rng.random() < 0.15:
        rules = [condition(rng, depth + 1, headless) for _ in range(rng.randint(1, 3))]
        rule: dict[str, Any] = {"type": "logical", "mode": rng.choice(("and", "or")), "rules": rules}
    else:
        pool = pools(rng)
        keys = HEADLESS if headless else tuple(pool)
        picked = {rng.choice(LIKELY if rng.random() < 0.6 else keys) for _ in range(rng.choice((1, 1, 2, 3)))}
        rule = {key: pool[key]() for key in sorted(picked) if key in keys}
        if not headless and rng.random() < 0.25:
            rule["rule_set"] = some(rng, ("s1", "s2", "s3"))
            if rng.random() < 0.2:
                rule["rule_set_ip_cidr_match_source"] = True
        if not rule:
            rule = {"domain_suffix": "x"}
    if rng.random() < 0.15:
        rule["invert"] = True
    return rule


@dataclass
class Case:
    raw: dict[str, Any]
    route: RouteConfig
    sets: dict[str, tuple[Rule, ...]]
    engine: Engine
    compiled: Compiled


def configuration(rng: random.Random, mode: Any = "strict") -> Case:
    rules = []
    for _ in range(rng.randint(1, 6)):
        rule = condition(rng)
        kind = rng.random()
        if kind < 0.2:
            rule = {"action": "sniff"} if rng.random() < 0.6 else {**rule, "action": "sniff"}
            if rng.random() < 0.2:
                rule["sniffer"] = some(rng, ("tls", "http", "quic", "dns"))
        elif kind < 0.3:
            rule |= {"action": "reject", "method": rng.choice(("default", "drop"))}
        elif kind < 0.35:
            rule |= {"action": "hijack-dns"}
        elif kind < 0.4:
            rule |= {"action": "route-options", "udp_connect": True}
        else:
            rule |= {"outbound": rng.choice(tuple(KINDS))}
        rules.append(rule)
    inner = {tag: [condition(rng, 1, True) for _ in range(rng.randint(1, 3))] for tag in ("s1", "s2", "s3")}
    raw = {"rules": rules, "rule_set": [{"tag": tag, "rules": found} for tag, found in inner.items()]}
    return build(raw, rng.choice(FINAL), mode)


def build(raw: dict[str, Any], final: str, mode: Any = "strict") -> Case:
    route = parse_route(raw)
    sets = {entry.tag: tuple(parse_headless(rule, "") for rule in entry.rules) for entry in route.rule_set}
    engine = Engine(route.rules, final, sets)
    compiled = compile_rules(route.rules, final, sets, Inputs(KINDS, users=USERS, groups=GROUPS, mode=mode))
    return Case({**raw, "final": final}, route, sets, engine, compiled)


def outcome(done: Decision) -> str:
    if done.action == "route":
        kind = KINDS[done.outbound]
        return "direct" if kind == "direct" else "reject" if kind == "block" else f"outbound {done.outbound}"
    return ("drop" if done.method == "drop" else "reject") if done.action == "reject" else done.action


def truth(engine: Engine, flow: Flow, protocol: str, name: str, learned: tuple[str, ...] = ()) -> str:
    """The engine's outcome for a flow that speaks ``protocol`` and would show ``name``."""
    findings = Findings(learned=learned)
    walk = engine.start(flow, findings)
    while True:
        done = walk.step()
        if isinstance(done, Decision):
            return outcome(done)
        if isinstance(done, SniffRequest) and protocol in done.protocols:
            findings.protocol = protocol
            if protocol in NAMED:
                findings.domain = name


@dataclass(frozen=True)
class Key:
    """What a packet shows. ``source`` of a forwarded flow, else ``process``."""

    network: Any
    port: int
    address: IPv4Address | IPv6Address
    source: IPv4Address | IPv6Address | None = None
    process: Process | None = None
    name: str = ""
    """Learned."""
    met: bool = True
    """Userspace has judged the executable and the cgroup of ``process``."""


def keys(rng: random.Random, count: int) -> Iterator[Key]:
    for _ in range(count):
        address = ip_address(rng.choice(V4 if rng.random() < 0.6 else V6))
        network, port = rng.choice(("tcp", "udp")), rng.choice(PORTS)
        name = rng.choice(NAMES) if rng.random() < 0.3 else ""
        if rng.random() < 0.6:
            sources = [source for source in map(ip_address, SOURCES) if source.version == address.version]
            yield Key(network, port, address, rng.choice(sources), None, name)
        else:
            yield Key(network, port, address, None, rng.choice(PROCESSES), name, rng.random() < 0.7)


def flows(key: Key, case: Case) -> Iterator[Flow]:
    """Every flow that looks like this to the kernel; only what the rules ask for varies. Sockets of one mask look
    alike."""
    text = json.dumps(case.raw)
    processes: list[Process | None] = [key.process]
    if key.process is not None and "process_path_regex" in text:
        mask = socket_mask(case.compiled, key.process)
        others = [key.process._replace(path=path) for path in PATHS]
        processes += [one for one in others if socket_mask(case.compiled, one) == mask]
    if key.source is not None:
        sources = [key.source]
    else:
        sources = [source for source in map(ip_address, LOCAL) if source.version == key.address.version]
        if "source_ip" not in text and "match_source" not in text:
            sources = sources[:1]
    ports = (*SOURCE_PORTS, 2000, 60000) if "source_port" in text else (2000,)
    for source in sources:
        for port in ports:
            for process in processes:
                ends = Address(source, port), Address(key.address, key.port)
                yield Flow(key.network, "gateway", "tproxy", *ends, "", process)


def everything(case: Case, key: Key) -> set[str]:
    """Outcomes over all completions; of a learned name it is believed that the flow shows it too."""
    out = set()
    learned = (key.name,) if key.name else ()
    for flow in flows(key, case):
        for protocol in ("", *PROTOCOLS[key.network]):
            if protocol == "dns" and key.port != 53:
                continue  # the one assumption of mode strict, beside learned names
            shown = ("",) if protocol not in NAMED else (key.name,) if key.name else ("", *NAMES)
            for name in shown:
                out.add(truth(case.engine, flow, protocol, name, learned))
                if len(out) > 1:
                    return out
    return out


def expected(outcomes: set[str]) -> Verdict:
    if len(outcomes) > 1:
        return Verdict.SNIFF
    only = next(iter(outcomes))
    return {"direct": Verdict.DIRECT, "reject": Verdict.REJECT, "drop": Verdict.DROP}.get(only, Verdict.USER)


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


def kernel(compiled: Compiled, key: Key) -> Verdict:
    names = (key.name,) if key.name else ()
    family: Any = key.address.version
    if key.source is not None:
        return compiled.lookup(
            key.network, key.port, family, int(key.address), source=int(key.source), names=names
        )[1]  # fmt: skip
    assert key.process is not None
    socket = dict(compiled.processes.classes).get(socket_mask(compiled, key.process), 30)
    if not key.met and unmet(compiled, key.process):
        socket = 30
    return compiled.lookup(key.network, key.port, family, int(key.address), socket=socket, names=names)[1]
