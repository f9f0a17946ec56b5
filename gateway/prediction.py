"""What would become of a flow: the request of ``gateway explain`` to an answer."""

from __future__ import annotations

import grp
import pwd
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

from gateway.config.root import Config
from gateway.core.address import IP, Address
from gateway.core.contracts import Devices
from gateway.core.errors import GatewayError
from gateway.core.flow import Device
from gateway.kernel.owner import process as owned_by
from gateway.kernel.plan import Steering
from gateway.route.compile import Compiled, Inputs, Mode, compile_rules
from gateway.route.engine import Engine
from gateway.route.explain import Judge, Query, explain
from gateway.route.match import set_tags
from gateway.route.options import RouteConfig
from gateway.route.program import Kind
from gateway.route.ruleset.load import Copies, load_all, no_copies

Prefix = IPv4Interface | IPv6Interface
Exempt = Callable[[IP | None, str, IP | None], str]
"""Source (None: this host) and its hardware address, destination, to a reason; "" for none."""
Names = Callable[[IP, IP], tuple[str, ...]]
SOME_MAC = "00:00:5e:00:53:00"
"""Of a device of which only the name is told (RFC 7042: for documentation)."""


def predict(
    engine: Engine, compiled: Compiled, request: dict[str, Any], names: Names, inbound: str,
    lans: Sequence[Prefix] = (), steering: Steering | None = None, devices: Devices | None = None,
    judge: Judge | None = None, missing: Sequence[str] = (), exempt: Exempt = lambda source, mac, target: "",
) -> dict[str, Any]:  # fmt: skip
    """Answer ``request``: destination, port, network, source, mac, interface, hostname, process, uid, user, gids,
    cgroup, shown. ``devices`` knows what a source is of which the request does not tell that. What goes into one of
    ``lans`` is never steered. ``steering``: what is in force in the kernel; None = the whole of ``compiled``, as where
    the CO-RE programs are loaded. ``judge``: see ``explain``. ``missing``: tags of rule sets that match nothing: there
    is no copy of them. ``exempt``: why a flow is direct whatever the rules say. Raises GatewayError."""
    try:
        target = Address.of(str(request["destination"]), int(request["port"]))
        source = Address.of(str(request["source"]), 0) if request.get("source") else None
    except (KeyError, ValueError, TypeError) as error:
        raise GatewayError(str(error)) from None
    if not 0 <= target.port < 65536 or (source is not None and source.ip is None):
        raise GatewayError("a port is 0 to 65535, a source is an address")
    if target.domain is not None and (not target.domain or set(target.domain) & set(":/[] ")):
        raise GatewayError(f'"{target.domain}" is no address and no name; a port goes into --port')
    process = device = None
    if source is not None and source.ip is not None:
        device = _device(request)
        if not any(device) and devices is not None:
            device = devices.find(source.ip)
    else:
        gids, place = tuple(map(int, request.get("gids", ()))), str(request.get("cgroup", ""))
        process = owned_by(str(request.get("process", "")), int(request.get("uid", -1)), gids, cgroup=place)
        if user := str(request.get("user", "")):
            process = process._replace(user=user)
    client = source.ip if source is not None else target.ip
    known = names(target.ip, client) if target.ip is not None and client is not None else ()
    query = Query(
        network="udp" if request.get("network") == "udp" else "tcp",
        port=target.port,
        address=target.ip,
        source=source,
        process=process,
        device=device,
        names=known,
        shown=str(request.get("shown", "")) or target.domain or "",
        inbound=inbound,
    )
    found = explain(engine, compiled, query, steering=steering, judge=judge)
    asked = {tag for rule in engine.rules for tag in set_tags(rule.match)}
    found["missing"] = [tag for tag in missing if tag in asked]
    found["text"] += [f'rule set "{tag}" has no copy yet: it matches nothing' for tag in found["missing"]]
    if target.ip is not None and any(target.ip in prefix.network for prefix in lans):
        _overrule(found, "what goes into a LAN is not steered", "")
    elif why := exempt(source and source.ip, device.mac if device is not None else "", target.ip):
        _overrule(found, why, engine.direct or "direct")
    return found


def _overrule(found: dict[str, Any], why: str, outbound: str) -> None:
    """Direct in the kernel, whatever was found."""
    found |= {
        "rule": -1,
        "action": "route",
        "outbound": outbound,
        "profile": None,
        "verdict": "direct",
        "where": "kernel",
        "overruled": None,
        "skipped": [],
    }
    found["text"] = [found["text"][0], f"in the kernel: {why}, whatever the rules say"]


def _device(request: dict[str, Any]) -> Device:
    mac, interface, hostname = (str(request.get(key, "")) for key in ("mac", "interface", "hostname"))
    return Device(mac.lower().replace("-", ":"), interface, hostname.lower())


def offline(
    config: Config, request: dict[str, Any], copies: Copies = no_copies, missing: Sequence[str] = ()
) -> dict[str, Any]:  # fmt: skip
    """From the file alone, and ``copies`` of remote rule sets, but for ``missing`` ones: no name is learned, a group
    stands for its default, the CO-RE programs are thought to be loaded. Raises ConfigError, GatewayError."""
    route = config.route or RouteConfig()
    final = route.final or (config.outbounds[0].tag if config.outbounds else "direct")
    engine = Engine(route.rules, final, load_all(route, config.directory, copies))
    users = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    groups = {entry.gr_name: entry.gr_gid for entry in grp.getgrall()}
    device = _device(request)
    if device.hostname and not device.mac:
        device = device._replace(mac=SOME_MAC)
    mode: Mode = "strict" if config.gateway is None else config.gateway.kernel.mode
    hostnames = {device.mac: device.hostname}
    inputs = Inputs(kinds(config), "gateway", users, groups, hostnames, mode, fakes=fake_networks(config))
    compiled = compile_rules(engine.rules, final, engine.sets, inputs)
    return predict(
        engine, compiled, {**request, "mac": device.mac}, lambda address, client: (), "gateway", lans_of(config),
        missing=missing,
    )  # fmt: skip


def fake_networks(config: Config) -> tuple[str, ...]:
    """Of the ``fakeip`` server."""
    found = [item.options.networks for item in config.dns_servers if item.type == "fakeip"]
    return tuple(str(network) for networks in found for network in networks)


def lans_of(config: Config) -> list[Prefix]:
    """Prefixes of the LANs behind us."""
    return [] if config.gateway is None else [prefix for lan in config.gateway.lans for prefix in lan.address]


def kinds(config: Config, chosen: Callable[[str], Collection[str]] = lambda tag: ()) -> dict[str, Kind]:
    """What each outbound comes to; ``chosen`` gives the members that a group uses, none = its default. ``direct`` only
    for a direct outbound that says nothing about how to dial: the kernel can do just that. A group that uses several of
    different kinds is userspace's."""
    items = {item.tag: item for item in config.outbounds}

    def kind(tag: str) -> Kind:
        item = items[tag]
        members = getattr(item.options, "outbounds", ())
        if members:
            used = chosen(tag) or (getattr(item.options, "default", "") or members[0],)
            found = set(map(kind, used))
            return found.pop() if len(found) == 1 else "proxy"
        if item.type == "block":
            return "block"
        plain = item.type == "direct" and item.options == type(item.options)()
        return "direct" if plain else "proxy"

    return {tag: kind(tag) for tag in items} or {"direct": "direct"}
